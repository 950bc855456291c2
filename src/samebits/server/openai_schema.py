"""What the OpenAI routes take, as data: every field supported, inert or refused.

As on /generate, a field that no table knows is an error that names it; an inert field is accepted because clients
send it, and changes nothing; a refused field would change the answer if we had it, and is accepted only with a
value that asks for nothing. Null is the same as not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from samebits.server import fields
from samebits.server.fields import Body, convert_object, decode_object

INERT_FIELDS = fields.INERT_FIELDS | {
    "early_stopping": "read by beam search alone",
    "guided_decoding_backend": "there is one",
    "length_penalty": "read by beam search alone",
    "metadata": "a label",
    "prediction": "speed alone, and no bit of the result",
    "prompt_cache_key": "the prefix cache cannot change a result",
    "prompt_cache_options": "the prefix cache cannot change a result",
    "prompt_cache_retention": "the prefix cache cannot change a result",
    "request_id": "a label; `rid` names a request",
    "safety_identifier": "a label",
    "service_tier": "there is one",
    "spaces_between_special_tokens": "text is what the tokenizer's decoder gives",
    "store": "nothing is stored",
    "stream_reasoning": "thoughts stream as all else",
    "user": "a label",
}
"""Accepted and without effect; the value says why that is harmless."""

REFUSED_FIELDS = (
    fields.REFUSED_FIELDS
    | fields.REFUSED_SAMPLING_FIELDS
    | {
        "allowed_token_ids": "lists of allowed tokens",
        "bad_words": "forbidden words",
        "guided_whitespace_pattern": "layouts of JSON",
        "kv_transfer_params": "disaggregated prefill",
        "logits_processors": "code in a request",
        "prompt_embeds": "embeddings as a prompt",
        "truncate_prompt_tokens": "truncated prompts",
        "use_beam_search": "beam search",
        "vllm_xargs": "code in a request",
    }
)
"""Refused unless blank, on every route; the value names what is not offered."""

REFUSED_COMPLETION_FIELDS = {"suffix": "suffixes (fill in the middle)"}

REFUSED_CHAT_FIELDS = {
    "audio": "audio",
    "chat_template": "chat templates of the request's own",
    "continue_final_message": "unfinished messages",
    "function_call": "functions in the old form (use tools)",
    "functions": "functions in the old form (use tools)",
    "moderation": "moderation",
    "mm_processor_kwargs": "images and audio",
    "reasoning": "levels of reasoning in this form (use reasoning_effort)",
    "verbosity": "levels of verbosity",
    "web_search_options": "web searches",
}


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn, and where they end: the same on every route."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    seed: int | str | None = None
    sampling_seed: int | str | None = None
    sample_index: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    include_stop_str_in_output: bool | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None
    """accepted; there is none"""


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`structured_outputs`, as vLLM has it."""

    json: str | dict[str, Any] | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class CommonFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a request is run and answered: the same on every route."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    rid: str | None = None
    priority: int | None = None
    use_prefix_cache: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    ebnf: str | None = None
    deadline_seconds: float | None = None


class CompletionFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What /v1/completions takes besides."""

    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    response_format: dict[str, Any] | None = None


class ChatFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What /v1/chat/completions takes besides."""

    messages: list[dict[str, Any]] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    date: str | None = None
    reasoning_effort: str | None = None
    separate_reasoning: bool | None = None


class TokenizeFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of /tokenize: a prompt, or a chat."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    date: str | None = None
    reasoning_effort: str | None = None


class DetokenizeFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool | None = None


def decode_request(
    body: bytes, kind: type[Body], refused: Mapping[str, str], inert: Mapping[str, str] = INERT_FIELDS
) -> tuple[Body, CommonFields, SamplingFields]:
    """Read the body of a route whose own fields are `kind`. Raises `RequestError` naming the field."""
    given = decode_object(body)
    parts: list[dict[str, Any]] = [{}, {}, {}]
    homes = (SamplingFields.__struct_fields__, CommonFields.__struct_fields__)
    for name, content in given.items():
        home = next((index for index, names in enumerate(homes) if name in names), 2)
        parts[home][name] = content
    shared = [name for names in homes for name in names]
    own = convert_object(parts[2], kind, "", inert, {**REFUSED_FIELDS, **refused}, shared)
    return (
        own,
        convert_object(parts[1], CommonFields, "", {}, {}),
        convert_object(parts[0], SamplingFields, "", {}, {}),
    )


def decode_small(body: bytes, kind: type[Body]) -> Body:
    """Read a body that holds nothing but `kind`. Raises `RequestError` naming the field."""
    return convert_object(decode_object(body), kind, "", {}, {})
