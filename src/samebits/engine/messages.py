"""What goes in and out of an engine, in process or over ZeroMQ: token ids, parameters, logprobs. No text."""

from __future__ import annotations

from typing import Literal

import msgspec

from samebits.sampling_params import ResolvedSampling, SamplingDefaults


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


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
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

    reason: Literal["stop", "length", "abort", "error"]
    matched_token: int | None = None
    """the stop or end-of-sequence token that ended it"""
    message: str = ""
    """for `abort` and `error`"""


class RequestEvent(msgspec.Struct, frozen=True, kw_only=True, tag="event"):
    """News of one request. Token ids are sent once each, in order; `finish` is set in its last event."""

    rid: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    """beside `token_ids`, when asked for"""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """once, in the first event, when asked for: positions `prompt_start` .. end of the prompt"""
    cached_tokens: int = 0
    warnings: list[str] = []
    finish: Finish | None = None


class AbortRequest(msgspec.Struct, frozen=True, kw_only=True, tag="abort"):
    """Stop a request (`rid`), every request whose id starts with it (`prefix`), or all (`rid` empty)."""

    rid: str = ""
    prefix: bool = False


class FlushCache(msgspec.Struct, frozen=True, kw_only=True, tag="flush"):
    """Drop every unreferenced page of the prefix cache."""

    call: int


class GetStatus(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """Ask for an `EngineStatus`."""

    call: int


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, tag="shutdown"):
    """Finish nothing more; exit."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a front end needs to know of the engine that it talks to; constant while the engine lives."""

    model: str
    family: str
    vocabulary: int
    context_length: int
    kv_tokens: int
    """tokens that fit in the KV pages; a request longer than this is refused"""
    eos_token_ids: list[int]
    sampling_defaults: SamplingDefaults
    default_seed: int | None
    """None: a random one each"""
    profile: str
    promises_bits: bool
    fingerprint: str
    plan: dict[str, str]
    """the plan's parts, for people"""


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """First message of an engine process."""

    facts: EngineFacts


class EngineProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Start-up news for the log or a progress bar."""

    stage: str
    done: int
    total: int


class EngineFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The engine cannot start or go on. `user_error` is set when the message alone says what to do."""

    message: str
    traceback: str = ""
    user_error: bool = False


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True, tag="status_reply"):
    """Counters of a running engine."""

    call: int
    running: int
    waiting: int
    steps: int
    kv_pages_total: int
    kv_pages_used: int
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    preemptions: int
    cached_pages: int = 0


class FlushReply(msgspec.Struct, frozen=True, kw_only=True, tag="flush_reply"):
    """Answer to `FlushCache`."""

    call: int
    pages: int


Command = EngineRequest | AbortRequest | FlushCache | GetStatus | Shutdown
Message = RequestEvent | EngineReady | EngineProgress | EngineFailed | EngineStatus | FlushReply
