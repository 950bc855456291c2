"""A generation request, the samples that it unfolds into, and what comes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from samebits.engine.messages import EngineRequest, LogprobOptions, TokenLogprobs
from samebits.errors import EngineError, RequestError
from samebits.grammar.language import Grammar
from samebits.sampling_params import STRUCTURED_FIELDS, SamplingParams
from samebits.text.output import TextOptions

IMPOSSIBLE = "impossible_output"
"""Error code of a request whose output cannot be what it asks for."""


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt as a front end takes it; `params.n` samples come of it."""

    prompt: str | Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    logprobs: LogprobOptions = field(default_factory=LogprobOptions)
    rid: str = ""
    """the caller's id; empty: a random one"""
    priority: int = 0
    use_prefix_cache: bool = True
    deadline_seconds: float | None = None
    """it ends so long after it was prepared, done or not; None: the generator's default"""
    add_special_tokens: bool = True
    """for a text prompt: put what the checkpoint wants around it (a rendered chat has it already)"""
    grammar: Grammar | None = None
    """what the output must match, when it is not `params` that say so"""

    @property
    def is_structured(self) -> bool:
        """Whether the output must match something, which takes time to check."""
        asked = [self.grammar, *(getattr(self.params, name) for name in STRUCTURED_FIELDS)]
        return any(part is not None for part in asked)


@dataclass(frozen=True)
class Sample:
    """One sample, ready for the engine."""

    rid: str
    group: str
    """id of the request that it came from; an abort may name either"""
    prompt_index: int
    """which prompt of the batch"""
    request: EngineRequest
    text: TextOptions
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FinishReason:
    """Why a sample ended."""

    type: Literal["stop", "length", "abort", "deadline", "error"]
    matched: int | str | None = None
    """for `stop`: the token id or the string"""
    message: str = ""
    """for `abort`, `deadline` and `error`"""
    impossible: bool = False
    """for `error`: what the request asks of its output cannot be met"""

    @property
    def error(self) -> EngineError | RequestError:
        """What to raise where a sample that failed may not look like an answer."""
        return RequestError(self.message, None, IMPOSSIBLE) if self.impossible else EngineError(self.message)


@dataclass(frozen=True)
class SampleOutput:
    """What came of a sample: since the last time, or in all."""

    text: str = ""
    """characters that are certain now; they may come later than their tokens"""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """set once, in the first, when asked for"""
    cached_tokens: int = 0
    warnings: tuple[str, ...] = ()
    finish: FinishReason | None = None
    """set in the last"""


class Collector:
    """Puts the outputs of one sample together."""

    def __init__(self, sample: Sample) -> None:
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
        self._cached_tokens = 0
        self._warnings = list(sample.warnings)
        self._finish: FinishReason | None = None

    def add(self, update: SampleOutput) -> None:
        self._text.append(update.text)
        self._token_ids.extend(update.token_ids)
        self._logprobs.extend(update.logprobs)
        if update.prompt_logprobs is not None:
            self._prompt_logprobs = update.prompt_logprobs
        self._cached_tokens = max(self._cached_tokens, update.cached_tokens)
        self._warnings.extend(update.warnings)
        self._finish = update.finish

    def clear(self) -> None:
        """Forget what has been read; what follows is a delta. The number of cached tokens stays."""
        self._text, self._token_ids, self._logprobs, self._warnings = [], [], [], []
        self._prompt_logprobs = None

    def result(self) -> SampleOutput:
        return SampleOutput(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=self._prompt_logprobs,
            cached_tokens=self._cached_tokens,
            warnings=tuple(self._warnings),
            finish=self._finish,
        )
