"""What a request may say about sampling, and the same thing with every blank filled in.

`SamplingParams` is what a user writes: a field that is None takes the server's default (from the model's
generation_config.json, or the neutral value). `ResolvedSampling` is what the engine runs and what every
response echoes. Both travel between processes, hence msgspec structs.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from samebits.errors import RequestError

DEFAULT_SEED = 42
DEFAULT_MAX_NEW_TOKENS = 128
MAX_SAMPLES = 64
"""Largest `n`."""
MAX_TOP_LOGPROBS = 128
MAX_SELECTED_LOGPROBS = 1024
"""Largest `token_ids_logprob`."""
MAX_STOPS = 256
"""Most stop strings: each is looked for in every token's text, by the process that serves everybody."""
MAX_STOP_CHARACTERS = 1 << 16
"""of all of them; every response repeats them"""
MAX_STOP_TOKENS = 1 << 14
STRUCTURED_FIELDS = ("json_schema", "regex", "choice", "ebnf", "llguidance")
"""What the output must look like; a request names one at most."""
LARGEST_INTEGER = (1 << 63) - 1
"""of those that travel to the engine"""


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """Values for the fields that a request leaves blank; part of the plan."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters as a user writes them. None means: the default of the plan.

    `seed` is a 64-bit integer, signed or unsigned (the two halves are the Philox key); `sample_index` names
    one stream of that seed, so that sample i of an earlier `n` can be replayed alone. At most one of `json_schema`,
    `regex`, `choice`, `ebnf` and `llguidance` says what the output must look like.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] = {}
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    n: int = 1
    seed: int | None = None
    sample_index: int = 0
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    json_schema: dict[str, Any] | bool | str | None = None
    """the output is JSON that is valid against this schema, given as an object or as its text"""
    regex: str | None = None
    """the whole output matches this expression"""
    choice: list[str] | None = None
    """the output is one of these texts"""
    ebnf: str | None = None
    """the output matches this grammar, in GBNF or in Lark"""
    llguidance: str | None = None
    """the output matches this grammar, in the form in which responses report one"""

    def validate(self) -> None:
        """Raise `RequestError` naming the first field whose value cannot be served."""
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, exclusive_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, exclusive_low=True)
        for name in ("top_k", "max_new_tokens", "min_new_tokens"):
            if (getattr(self, name) or 0) > LARGEST_INTEGER:
                raise RequestError(f"{name} must fit in 64 bits", name)
        if self.top_k is not None and self.top_k < -1:
            raise RequestError("top_k must be -1 or 0 (off) or a positive number of tokens", "top_k")
        for token_id, bias in self.logit_bias.items():
            if not math.isfinite(bias) or abs(bias) > 1000.0:
                raise RequestError(
                    f"logit_bias for token {token_id} must lie in [-1000, 1000], got {bias}", "logit_bias"
                )
        if self.max_new_tokens is not None and self.max_new_tokens < 0:
            raise RequestError("max_new_tokens must not be negative", "max_new_tokens")
        if self.min_new_tokens < 0:
            raise RequestError("min_new_tokens must not be negative", "min_new_tokens")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise RequestError("min_new_tokens must not exceed max_new_tokens", "min_new_tokens")
        self._check_stops()
        if not 1 <= self.n <= MAX_SAMPLES:
            raise RequestError(f"n must lie in [1, {MAX_SAMPLES}], got {self.n}", "n")
        if self.seed is not None and not -(1 << 63) <= self.seed < (1 << 64):
            raise RequestError("seed must fit in 64 bits", "seed")
        if not 0 <= self.sample_index < 1 << 31:
            raise RequestError("sample_index must lie in [0, 2^31)", "sample_index")
        asked = [name for name in STRUCTURED_FIELDS if getattr(self, name) is not None]
        if len(asked) > 1:
            raise RequestError(f"an output has one form: give one of {' and '.join(asked)}", asked[1])

    def _check_stops(self) -> None:
        if any(not text for text in self.stop):
            raise RequestError("stop must not contain an empty string", "stop")
        if len(self.stop) > MAX_STOPS or sum(map(len, self.stop)) > MAX_STOP_CHARACTERS:
            message = (
                f"stop must hold at most {MAX_STOPS} strings of {MAX_STOP_CHARACTERS} characters together"
            )
            raise RequestError(message, "stop")
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            message = (
                f"stop_token_ids must hold at most {MAX_STOP_TOKENS} ids, got {len(self.stop_token_ids)}"
            )
            raise RequestError(message, "stop_token_ids")

    def resolve(self, defaults: SamplingDefaults, default_seed: int) -> ResolvedSampling:
        """Fill the blanks. The caller has validated; `default_seed` is used when the request names none."""
        seed = default_seed if self.seed is None else self.seed
        top_k = defaults.top_k if self.top_k is None else self.top_k
        return ResolvedSampling(
            temperature=_either(self.temperature, defaults.temperature),
            top_k=max(top_k, 0),
            top_p=_either(self.top_p, defaults.top_p),
            min_p=_either(self.min_p, defaults.min_p),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=_either(self.repetition_penalty, defaults.repetition_penalty),
            logit_bias=self.logit_bias,
            max_new_tokens=(defaults.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens),
            min_new_tokens=self.min_new_tokens,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            seed=seed & 0xFFFF_FFFF_FFFF_FFFF,
            sample_index=self.sample_index,
        )


class ResolvedSampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters of one sample, with nothing left open. Stop strings are the text layer's business."""

    temperature: float = 1.0
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    min_new_tokens: int = 0
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    seed: int = DEFAULT_SEED
    """Unsigned 64-bit."""
    sample_index: int = 0

    @property
    def needs_history(self) -> bool:
        """Whether a penalty reads the tokens so far."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


def _either(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_range(
    field: str, value: float | None, low: float, high: float, exclusive_low: bool = False
) -> None:
    if value is None:
        return
    inside = low <= value <= high and not (exclusive_low and value == low)
    if not (math.isfinite(value) and inside):
        bracket = "(" if exclusive_low else "["
        raise RequestError(f"{field} must lie in {bracket}{low:g}, {high:g}], got {value}", field)
