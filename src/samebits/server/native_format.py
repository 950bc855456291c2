"""Samples as /generate answers them: SGLang's shape, with our additions in `meta_info`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from samebits.engine.messages import EngineFacts, TokenLogprobs
from samebits.generation.samples import FinishReason, Sample, SampleOutput
from samebits.text.tokenizer import Tokenizer

LARGEST_SAFE_INTEGER = (1 << 53) - 1
"""beyond it a JSON number is rounded by clients whose numbers are doubles"""
WEIGHT_VERSION = "default"
DEADLINE_STATUS = 504
"""what the whole answer would have had, had there been no token by then"""

Triple = tuple[float | None, int, str | None]


@dataclass(frozen=True)
class LogprobView:
    """Which logprobs a response shows."""

    wanted: bool = False
    top: bool = False
    selected: bool = False
    text: bool = False
    """with the text of each token"""


class SampleFormatter:
    """Makes the response objects of one sample; what stays the same is made once."""

    def __init__(
        self,
        sample: Sample,
        facts: EngineFacts,
        tokenizer: Tokenizer | None,
        view: LogprobView,
        with_prompt_ids: bool = False,
    ) -> None:
        self._sample = sample
        self._tokenizer = tokenizer
        self._view = view
        self._started = time.monotonic()
        sampling = sample.request.sampling
        self._constant: dict[str, Any] = {
            "id": sample.rid,
            "prompt_tokens": len(sample.request.prompt_ids),
            "weight_version": WEIGHT_VERSION,
            "fingerprint": facts.fingerprint,
            "seed": safe_integer(sampling.seed),
            "sample_index": sampling.sample_index,
            "sampling_params": msgspec.Raw(msgspec.json.encode(resolved_parameters(sample))),
        }
        if with_prompt_ids:
            self._constant["prompt_token_ids"] = sample.request.prompt_ids

    def response(self, part: SampleOutput, completion_tokens: int | None = None) -> dict[str, Any]:
        """The object for a sample, finished or not. `completion_tokens` counts them all when `part` is a delta."""
        count = len(part.token_ids) if completion_tokens is None else completion_tokens
        meta: dict[str, Any] = {
            **self._constant,
            "finish_reason": finish_object(part.finish, count),
            "completion_tokens": count,
            "cached_tokens": part.cached_tokens,
            "e2e_latency": time.monotonic() - self._started,
            "warnings": part.warnings,
        }
        if self._view.wanted:
            meta.update(self._logprob_lists("input", part.prompt_logprobs or ()))
            meta.update(self._logprob_lists("output", part.logprobs))
        return {"text": part.text, "output_ids": part.token_ids, "meta_info": meta}

    def _logprob_lists(self, side: str, positions: Sequence[TokenLogprobs]) -> dict[str, Any]:
        lists: dict[str, Any] = {
            f"{side}_token_logprobs": [self._triple(at.logprob, at.token_id) for at in positions]
        }
        if self._view.top:
            lists[f"{side}_top_logprobs"] = [self._triples(at, at.top) for at in positions]
        if self._view.selected:
            lists[f"{side}_token_ids_logprobs"] = [self._triples(at, at.selected) for at in positions]
        return lists

    def _triples(self, at: TokenLogprobs, pairs: Sequence[tuple[float, int]]) -> list[Triple] | None:
        """None where the position has no logprob: the first token of a prompt."""
        if at.logprob is None:
            return None
        return [self._triple(logprob, token_id) for logprob, token_id in pairs]

    def _triple(self, logprob: float | None, token_id: int) -> Triple:
        if not self._view.text or self._tokenizer is None:
            return logprob, token_id, None
        return logprob, token_id, self._tokenizer.token_text(token_id)


def finish_object(finish: FinishReason | None, completion_tokens: int) -> dict[str, Any] | None:
    """`finish_reason` as SGLang writes it."""
    if finish is None:
        return None
    match finish.type:
        case "stop":
            return {"type": "stop", "matched": finish.matched}
        case "length":
            return {"type": "length", "length": completion_tokens}
        case "deadline":
            return {"type": "abort", "message": finish.message, "status_code": DEADLINE_STATUS}
        case _:
            return {"type": finish.type, "message": finish.message}


def resolved_parameters(sample: Sample) -> dict[str, Any]:
    """The sample's parameters with nothing left open, under the request's names: sent again, they replay it."""
    sampling = msgspec.to_builtins(sample.request.sampling, str_keys=True)
    sampling["sampling_seed"] = safe_integer(sampling.pop("seed"))
    sampling["top_k"] = sampling["top_k"] or -1
    text = sample.text
    grammar = {"llguidance": sample.request.grammar} if sample.request.grammar else {}
    return (
        sampling
        | grammar
        | {
            "stop": text.stop,
            "skip_special_tokens": text.skip_special_tokens,
            "no_stop_trim": text.keep_stop,
        }
    )


def safe_integer(value: int) -> int | str:
    """`value`, as a decimal string where doubles would round it. Requests take either."""
    return value if value <= LARGEST_SAFE_INTEGER else str(value)
