"""Messages between the processes: what goes over the wire, and what waits for a slow reader."""

from __future__ import annotations

import random

import msgspec
import pytest

from samebits.engine.async_engine import merged
from samebits.engine.messages import (
    EngineFailed,
    EngineProgress,
    EngineStatus,
    Finish,
    FlushReply,
    Message,
    News,
    ProfileReply,
    RequestEvent,
    TokenLogprobs,
    make_news,
)

SCORE = TokenLogprobs(5, -0.1, [(-0.1, 5), (-2.5, 6)], [(-9.0, 7)])
EVENTS: list[Message] = [
    RequestEvent(rid="a", token_ids=[1]),
    RequestEvent(rid="b", prompt_logprobs=[TokenLogprobs(1, None), SCORE], queued_microseconds=7),
    RequestEvent(rid="a", token_ids=[2], logprobs=[SCORE], cached_tokens=3, warnings=["w"]),
    RequestEvent(rid="a", finish=Finish(reason="stop", matched_token=2)),
]
OTHERS: list[Message] = [
    EngineProgress(stage="loading", done=1, total=2),
    EngineStatus(
        call=1,
        running=1,
        waiting=2,
        steps=3,
        kv_pages_total=4,
        kv_pages_used=5,
        prompt_tokens=6,
        generated_tokens=7,
        cached_tokens=8,
        preemptions=9,
    ),
    FlushReply(call=2, pages=3),
    ProfileReply(call=3, paths=["p"]),
    EngineFailed(message="gone"),
]


@pytest.mark.parametrize(
    "messages", [EVENTS, OTHERS, [*EVENTS, *OTHERS], [OTHERS[0], *EVENTS, OTHERS[1]], []]
)
def test_every_message_survives_the_wire(messages: list[Message]) -> None:
    data = msgspec.msgpack.Encoder().encode(make_news(messages))
    news = msgspec.msgpack.Decoder(News).decode(data)
    assert news.events == [message for message in messages if message in EVENTS]
    assert news.others == [message for message in messages if message in OTHERS]


def stream(source: random.Random) -> list[RequestEvent]:
    """The events of one request, a token each."""
    count = source.randint(2, 12)
    events = [
        RequestEvent(
            rid="a",
            token_ids=[source.randrange(100)],
            logprobs=[TokenLogprobs(number, -source.random())],
            prompt_logprobs=[SCORE] if number == 0 else None,
            cached_tokens=4,
            warnings=["w"] if source.random() < 0.2 else [],
            queued_microseconds=9 if number == 0 else 0,
        )
        for number in range(count)
    ]
    return [*events, RequestEvent(rid="a", cached_tokens=4, finish=Finish(reason="length"))]


def said(events: list[RequestEvent]) -> tuple[object, ...]:
    """What a reader makes of them."""
    return (
        [token_id for event in events for token_id in event.token_ids],
        [entry for event in events for entry in event.logprobs],
        [event.prompt_logprobs for event in events if event.prompt_logprobs is not None],
        [warning for event in events for warning in event.warnings],
        [event.finish for event in events if event.finish is not None],
        max(event.cached_tokens for event in events),
        sum(event.queued_microseconds for event in events),
    )


@pytest.mark.parametrize("seed", range(20))
def test_merged_events_say_what_they_said_one_by_one(seed: int) -> None:
    source = random.Random(seed)
    events = stream(source)
    parts, rest = [], list(events)
    while rest:
        size = source.randint(1, len(rest))
        parts.append(merged(rest[:size]))
        rest = rest[size:]
    assert said(parts) == said(events)
    assert said([merged(events)]) == said(events)
    out_of_order = [*events[-2::-1], events[-1]]
    assert said([merged(out_of_order)]) != said(events)
    assert said([merged(events[1:])]) != said(events)
