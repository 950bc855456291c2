"""What goes in and out of an engine, in process or over ZeroMQ: token ids, parameters, logprobs. No text."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from samebits.sampling_params import SamplingDefaults
from samebits.schedule.messages import (
    EngineRequest,
    Finish,
    LogprobOptions,
    RequestEvent,
    TokenLogprobs,
)

__all__ = [
    "AbortRequest",
    "Command",
    "EngineFacts",
    "EngineFailed",
    "EngineProgress",
    "EngineReady",
    "EngineRequest",
    "EngineStatus",
    "Finish",
    "FlushCache",
    "FlushReply",
    "GetStatus",
    "LogprobOptions",
    "Message",
    "News",
    "ProfileReply",
    "Reply",
    "RequestEvent",
    "Shutdown",
    "StartProfile",
    "StopProfile",
    "TokenLogprobs",
    "make_news",
]


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


class StartProfile(msgspec.Struct, frozen=True, kw_only=True, tag="start_profile"):
    """Record what the engine's process does, for a trace in `folder`."""

    call: int
    folder: str


class StopProfile(msgspec.Struct, frozen=True, kw_only=True, tag="stop_profile"):
    """End the recording and write the trace."""

    call: int


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, tag="shutdown"):
    """Finish nothing more; exit."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a front end needs to know of the engine that it talks to; constant while the engine lives."""

    model: str
    folder: str = ""
    """the checkpoint's local folder, where the front end finds tokenizer and chat template"""
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
    replicas: int = 1
    """engines behind this one; the limits above are those of each"""


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
    expected_pages: int = 0
    """the most that the running requests are expected to hold at once before they have ended"""
    step_counts: list[int] = []
    """how many turns of the loop that finished a step took at most each of `histogram.STEP_SECONDS`, or longer"""
    step_seconds: float = 0.0
    """the time of those turns"""


class FlushReply(msgspec.Struct, frozen=True, kw_only=True, tag="flush_reply"):
    """Answer to `FlushCache`."""

    call: int
    pages: int


class ProfileReply(msgspec.Struct, frozen=True, kw_only=True, tag="profile_reply"):
    """Answer to `StartProfile` and `StopProfile`."""

    call: int
    paths: list[str] = []
    """of the trace that was written, or is to be"""
    error: str = ""
    """why there is none: what the caller asked for does not go together with what runs"""


Reply = EngineStatus | FlushReply | ProfileReply
Command = EngineRequest | AbortRequest | FlushCache | GetStatus | StartProfile | StopProfile | Shutdown
Other = EngineReady | EngineProgress | EngineFailed | Reply
Message = RequestEvent | Other


class News(msgspec.Struct, frozen=True, array_like=True):
    """Messages as they travel between processes: events are arrays, and all else is rare."""

    events: list[RequestEvent]
    others: list[Other]
    """read after the events, so that a failure is the last news"""


def make_news(messages: Sequence[Message]) -> News:
    """Messages of one turn of the engine's loop, whose replies do not care for their place among the events."""
    events = [message for message in messages if type(message) is RequestEvent]
    if len(events) == len(messages):
        return News(events, [])
    return News(events, [message for message in messages if not isinstance(message, RequestEvent)])
