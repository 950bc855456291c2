"""Engines of the fake model in any size, and what their clients receive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import msgspec

from samebits.engine.engine import Engine
from samebits.engine.messages import EngineRequest, LogprobOptions, RequestEvent
from samebits.sampling_params import ResolvedSampling
from samebits.verify.simulation.ledger import Stream
from samebits.verify.simulation.models import FAKE_RECIPE
from samebits.verify.simulation.sabotage import FaultPlan
from samebits.verify.simulation.scenario import Loop, Sizes
from samebits.verify.simulation.schedules import simulated_model
from samebits.verify.simulation.simulate import make_engine, run_alone

HARMLESS = {FAKE_RECIPE.breaking_token: -1000.0, FAKE_RECIPE.unsound_token: -1000.0}
"""a logit bias under which no request samples what breaks it"""
ALONE = Sizes(page_tokens=16, pages=32, step_tokens=512, max_running=1, max_waiting=1)
LOOPS: tuple[Loop, ...] = ("simple", "overlapped, quick device", "overlapped, slow device")


def small_engine(
    page_tokens: int = 4,
    pages: int = 64,
    step_tokens: int = 16,
    max_running: int = 8,
    max_waiting: int = 1000,
    loop: Loop = "simple",
    plan: FaultPlan | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Engine:
    """An engine of the fake model. Deadlines are read from `clock`."""
    sizes = Sizes(page_tokens, pages, step_tokens, max_running, max_waiting)
    return make_engine(simulated_model("fake"), sizes, plan or FaultPlan(), loop, clock=clock)


def request(rid: str, prompt: Iterable[int], new_tokens: int = 4, **others: Any) -> EngineRequest:
    """A request; `others` are fields of the request, or of its sampling or logprob options."""
    sampling = {name: others.pop(name) for name in list(others) if name in ResolvedSampling.__struct_fields__}
    logprobs = {name: others.pop(name) for name in list(others) if name in LogprobOptions.__struct_fields__}
    sampling = {"max_new_tokens": new_tokens, "ignore_eos": True, **sampling}
    sampling["logit_bias"] = {**HARMLESS, **sampling.get("logit_bias", {})}
    return EngineRequest(
        rid=rid,
        prompt_ids=list(prompt),
        sampling=ResolvedSampling(**sampling),
        logprobs=LogprobOptions(**logprobs),
        **others,
    )


def steps(engine: Engine, number: int) -> list[RequestEvent]:
    """Run some steps, each checked."""
    events: list[RequestEvent] = []
    for _ in range(number):
        events += engine.step()
        engine.scheduler.check()
    return events


def run(engine: Engine, requests: Iterable[EngineRequest] = (), most_steps: int = 2000) -> list[RequestEvent]:
    """Submit, and run to the end."""
    for one in requests:
        engine.submit(one)
    events: list[RequestEvent] = []
    while engine.has_work():
        events += steps(engine, 1)
        most_steps -= 1
        assert most_steps, "no end in sight"
    return events


def streams(requests: Iterable[EngineRequest], events: Iterable[RequestEvent]) -> dict[str, Stream]:
    """What each client put together, order checked."""
    found = {one.rid: Stream(one) for one in requests}
    for event in events:
        found[event.rid].take(event)
    return found


def bits(stream: Stream) -> bytes:
    """Everything that must not depend on the schedule."""
    assert stream.finish is not None
    finish = (stream.finish.reason, stream.finish.matched_token)
    return msgspec.msgpack.encode((stream.token_ids, stream.logprobs, stream.prompt_logprobs, finish))


def bits_alone(one: EngineRequest) -> bytes:
    """The bits of a request that has an engine for itself, of other sizes."""
    return _alone(
        msgspec.msgpack.encode(msgspec.structs.replace(one, rid="alone", priority=0, deadline=None))
    )


@cache
def _alone(encoded: bytes) -> bytes:
    one = msgspec.msgpack.decode(encoded, type=EngineRequest)
    return bits(run_alone(simulated_model("fake"), ALONE, one))
