"""A request for one sample and the news of it: what the scheduler and the engine both speak of. Token ids only."""

from __future__ import annotations

from typing import Literal

import msgspec

from samebits.sampling_params import ResolvedSampling


class LogprobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which logprobs a request wants. Raw logprobs are of the model's own distribution."""

    output: bool = False
    """logprob of every output token"""
    prompt_start: int = -1
    """first prompt position whose token gets a logprob; -1: none. Position 0 has none (reported as null)."""
    top: int = 0
    """this many most likely tokens at every position that has a logprob"""
    token_ids: list[int] = []
    """logprobs of these ids at every position that has a logprob"""
    processed: bool = False
    """of the distribution after penalties, temperature and filters instead (output tokens only)"""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, tag="request"):
    """One sample to generate. `n` samples are `n` of these."""

    rid: str
    prompt_ids: list[int]
    sampling: ResolvedSampling
    logprobs: LogprobOptions = LogprobOptions()
    priority: int = 0
    """higher goes first"""
    use_prefix_cache: bool = True
    deadline: float | None = None
    """when it ends, done or not: a reading of the engine's clock (`time.monotonic`, which all processes of a
    machine share); None: never"""
    grammar: str = ""
    """what the output must match, in the language of the engine's mask source; empty: anything"""
    replica: int | None = None
    """which of several engines behind a server is to run it; None: any, for the bits are the same"""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Logprobs at one position. Each float is a float32 value exactly."""

    token_id: int
    logprob: float | None
    """None for the first token of a prompt"""
    top: list[tuple[float, int]] = []
    """(logprob, token id), most likely first"""
    selected: list[tuple[float, int]] = []
    """for the ids that the request named, in its order"""


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request ended."""

    reason: Literal["stop", "length", "abort", "deadline", "error"]
    matched_token: int | None = None
    """the stop or end-of-sequence token that ended it"""
    message: str = ""
    """for `abort`, `deadline` and `error`"""
    refusal: Literal["", "request", "queue_full"] = ""
    """for `error`: the engine did not take the request; `field` names the parameter at fault, if one is"""
    field: str | None = None
    impossible: bool = False
    """for `error`: what the request asks of its output cannot be met, so it ends so wherever it runs"""


class RequestEvent(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """News of one request. Token ids are sent once each, in order; `finish` is set in its last event.

    There is one a token, so it travels as an array, and the garbage collector leaves it out: it can be in no cycle.
    """

    rid: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    """beside `token_ids`, when asked for"""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """once, in the first event, when asked for: positions `prompt_start` .. end of the prompt"""
    cached_tokens: int = 0
    warnings: list[str] = []
    finish: Finish | None = None
    queued_microseconds: int = 0
    """in the first event: from the submission to the first step"""
