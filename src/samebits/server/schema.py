"""What /generate takes, as data: SGLang's names, each supported, inert or refused, and our own additions.

A field that no table knows is an error that names it. An inert field is accepted because SGLang's clients send
it, and changes nothing. A refused field is one that would change the answer if we had it; it is accepted only
with a value that asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from samebits.errors import RequestError
from samebits.server import fields
from samebits.server.fields import convert_object, decode_object

INERT_FIELDS = fields.INERT_FIELDS | {
    "background": "responses are never detached",
    "conversation_id": "a label",
    "custom_labels": "a label",
    "external_trace_header": "traces follow the header traceparent",
    "log_metrics": "no metrics of single requests",
    "modalities": "text only",
    "no_logs": "prompts are never logged",
    "received_time": "a label",
    "require_reasoning": "no reasoning parser on this route",
    "routed_dp_rank": "one engine serves every request",
    "routing_key": "one engine serves every request",
}
"""Accepted and without effect; the value says why that is harmless."""

REFUSED_FIELDS = fields.REFUSED_FIELDS | {
    "audio_data": "audio",
    "bootstrap_pair_key": "disaggregated prefill",
    "decode_tp_size": "disaggregated prefill",
    "disagg_prefill_dp_rank": "disaggregated prefill",
    "image_data": "images",
    "input_embeds": "embeddings as a prompt",
    "lora_id": "LoRA adapters",
    "max_thinking_tokens": "a thinking budget",
    "mm_hashes": "images",
    "mm_content_hashes": "images",
    "multi_item_delimiter_indices": "multi-item scoring",
    "positional_embed_overrides": "embeddings as a prompt",
    "return_bytes": "image generation",
    "return_entropy": "entropies",
    "return_flat_raw_top_logprobs": "flat logprob arrays",
    "return_flat_raw_top_logprobs_b64": "flat logprob arrays",
    "return_indexer_topk": "sparse attention indices",
    "return_routed_experts": "expert indices",
    "return_sampling_mask": "sampling masks",
    "routed_experts_start_len": "expert indices",
    "use_audio_in_video": "video",
    "video_config": "video",
    "video_data": "video",
}
"""Refused unless blank; the value names what is not offered."""

INERT_SAMPLING_FIELDS = {
    "spaces_between_special_tokens": "text is what the tokenizer's decoder gives",
    "stream_interval": "every token is sent when it comes",
}

REFUSED_SAMPLING_FIELDS = fields.REFUSED_SAMPLING_FIELDS | {
    "beam_width": "beam search",
}


class NativeSampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`sampling_params` of /generate. None means: the default."""

    temperature: float | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    sampling_seed: int | str | None = None
    sample_index: int | None = None
    json_schema: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    ebnf: str | None = None
    llguidance: str | None = None


class NativeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of /generate, in SGLang's shape."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: list[int | list[int]] | None = None
    return_text_in_logprobs: bool | None = None
    return_prompt_token_ids: bool | None = None
    stream: bool | None = None
    incremental: bool | None = None
    rid: str | list[str] | None = None
    priority: int | None = None
    use_prefix_cache: bool | None = None
    deadline_seconds: float | None = None
    processed_logprobs: bool | None = None


class AbortBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of /abort_request."""

    rid: str = ""
    abort_all: bool = False


def decode_native(body: bytes) -> NativeRequest:
    """Read the body of /generate. Raises `RequestError` naming the field."""
    value = decode_object(body)
    for name in value:
        if name in NativeSampling.__struct_fields__:
            message = f"unknown field {name}: it belongs in sampling_params"
            raise RequestError(message, name, "unknown_parameter")
    return convert_object(value, NativeRequest, "", INERT_FIELDS, REFUSED_FIELDS)


def convert_sampling(value: Mapping[str, Any], path: str) -> NativeSampling:
    """Read one `sampling_params` object. Raises `RequestError` naming the field."""
    return convert_object(value, NativeSampling, path, INERT_SAMPLING_FIELDS, REFUSED_SAMPLING_FIELDS)
