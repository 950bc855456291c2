"""What the clients of a simulated engine received, and whether they should have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from samebits.engine.messages import EngineRequest, Finish, RequestEvent, TokenLogprobs


class ScheduleError(AssertionError):
    """A schedule changed a bit, or the engine contradicted itself."""


@dataclass
class Stream:
    """All news of one request, put together as its client does."""

    request: EngineRequest
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish: Finish | None = None
    events: int = 0
    lost: list[Stream] = field(default_factory=list)
    """what was received of it before each restart of the engine"""

    def take(self, event: RequestEvent) -> None:
        """Add an event. Raises `ScheduleError` where the order of events is broken."""
        rid = self.request.rid
        wanted = self.request.logprobs
        if self.finish is not None:
            raise ScheduleError(f"{rid}: an event after the last one: {event}")
        if wanted.output and len(event.logprobs) != len(event.token_ids):
            raise ScheduleError(f"{rid}: {len(event.token_ids)} tokens but {len(event.logprobs)} logprobs")
        if not wanted.output and event.logprobs:
            raise ScheduleError(f"{rid}: logprobs that nobody asked for")
        if event.prompt_logprobs is not None and (self.events or wanted.prompt_start < 0):
            raise ScheduleError(f"{rid}: prompt logprobs in event {self.events}")
        if not event.token_ids and event.finish is None:
            raise ScheduleError(f"{rid}: an event without news")
        self.events += 1
        self.token_ids.extend(event.token_ids)
        self.logprobs.extend(event.logprobs)
        self.prompt_logprobs = event.prompt_logprobs if self.events == 1 else self.prompt_logprobs
        self.finish = event.finish

    def restarted(self) -> Stream:
        """The stream of the same request at a new engine."""
        return Stream(self.request, lost=[*self.lost, self])


def compare(stream: Stream, solo: Stream) -> None:
    """Raise `ScheduleError` unless `stream` has the bits of `solo`; one that was aborted, or cut off by its
    deadline or a restart, those of its beginning."""
    for lost in stream.lost:
        _compare_beginning(lost, solo, "before a restart, ")
    assert stream.finish is not None and solo.finish is not None
    rid = stream.request.rid
    if stream.finish.reason in ("abort", "deadline"):
        _compare_beginning(stream, solo, f"before the {stream.finish.reason}, ")
        return
    _compare_beginning(stream, solo, "")
    if len(stream.token_ids) != len(solo.token_ids):
        raise ScheduleError(f"{rid}: {len(stream.token_ids)} tokens, alone {len(solo.token_ids)}")
    ends = [(item.finish.reason, item.finish.matched_token) for item in (stream, solo) if item.finish]
    if ends[0] != ends[1]:
        raise ScheduleError(f"{rid}: finished with {stream.finish}, alone with {solo.finish}")
    if (stream.prompt_logprobs is None) != (solo.prompt_logprobs is None):
        raise ScheduleError(f"{rid}: prompt logprobs are there with company or alone, but not in both cases")


def _compare_beginning(stream: Stream, solo: Stream, when: str) -> None:
    rid = stream.request.rid
    tokens = stream.token_ids
    for position, (found, expected) in enumerate(zip(tokens, solo.token_ids, strict=False)):
        if found != expected:
            raise ScheduleError(f"{rid}: {when}output token {position} is {found}, alone {expected}")
    if len(tokens) > len(solo.token_ids):
        raise ScheduleError(f"{rid}: {when}{len(tokens)} tokens, alone {len(solo.token_ids)}")
    expected_logprobs = solo.logprobs[: len(stream.logprobs)]
    _compare_logprobs(f"{rid}: {when}logprob of output token", stream.logprobs, expected_logprobs)
    if stream.prompt_logprobs is not None:
        _compare_logprobs(
            f"{rid}: {when}logprob of prompt token", stream.prompt_logprobs, solo.prompt_logprobs or []
        )


def _compare_logprobs(what: str, found: Sequence[TokenLogprobs], expected: Sequence[TokenLogprobs]) -> None:
    # Encoded, every float is its bits: -0 is not 0 and a NaN equals itself.
    if msgspec.msgpack.encode(found) == msgspec.msgpack.encode(expected):
        return
    for index, (one, other) in enumerate(zip(found, expected, strict=False)):
        if msgspec.msgpack.encode(one) != msgspec.msgpack.encode(other):
            raise ScheduleError(f"{what} {index} is {one}, alone {other}")
    raise ScheduleError(f"{what}: {len(found)} of them, alone {len(expected)}")
