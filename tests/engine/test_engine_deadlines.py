"""A deadline ends its request, wherever it is, and nobody else. What was sent by then begins the whole answer."""

from __future__ import annotations

import random

import pytest
from small_engine import LOOPS, bits, bits_alone, request, run, small_engine, steps, streams

from samebits.engine.deadlines import Deadlines
from samebits.engine.messages import EngineRequest
from samebits.schedule.request import Phase, new_request
from samebits.verify.simulation.ledger import Stream, compare
from samebits.verify.simulation.scenario import Loop, Sizes
from samebits.verify.simulation.schedules import simulated_model
from samebits.verify.simulation.simulate import run_alone

SAFE = list(range(20, 200))
ALONE = Sizes(page_tokens=16, pages=32, step_tokens=512, max_running=1, max_waiting=1)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def alone(one: EngineRequest) -> Stream:
    return run_alone(simulated_model("fake"), ALONE, one)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("when", range(12))
def test_a_deadline_cuts_its_own_request_short_and_spares_the_others(loop: Loop, when: int) -> None:
    clock = Clock()
    engine = small_engine(page_tokens=4, pages=24, step_tokens=9, max_running=3, loop=loop, clock=clock)
    late = [
        request(f"late {i}", SAFE[i : i + 9], 20, output=True, seed=i, deadline=150.0, prompt_start=2 * i)
        for i in range(3)
    ]
    others = [request(f"other {i}", SAFE[i : i + 11], 6, output=True, seed=i) for i in range(4)]
    requests = [late[0], others[0], late[1], *others[1:], late[2]]
    for one in requests:
        engine.submit(one)
    events = steps(engine, when)
    clock.now = 150.0
    events += run(engine)
    found = streams(requests, events)
    for one in late:
        stream = found[one.rid]
        assert stream.finish is not None and stream.finish.reason == "deadline"
        compare(stream, alone(one))
    for one in others:
        assert bits(found[one.rid]) == bits_alone(one), one.rid
    assert engine.scheduler.pool.used == engine.scheduler.cache.pages


def test_a_deadline_that_is_met_changes_nothing() -> None:
    clock = Clock()
    engine = small_engine(clock=clock)
    one = request("in time", SAFE[:9], 6, output=True, deadline=100.5)
    events = run(engine, [one])
    assert bits(streams([one], events)["in time"]) == bits_alone(one)
    clock.now = 200.0
    assert engine.step() == []


def test_a_deadline_ends_a_request_that_waits() -> None:
    clock = Clock()
    engine = small_engine(max_running=1, max_waiting=1, clock=clock)
    engine.submit(request("first", SAFE[:5], 30))
    steps(engine, 1)
    engine.submit(request("second", SAFE[5:10], deadline=101.0))
    assert all(event.rid == "first" for event in steps(engine, 2))
    clock.now = 101.0
    ended = next(event for event in engine.step() if event.rid == "second")
    assert ended.finish is not None and not ended.token_ids and ended.prompt_logprobs is None
    assert ended.finish.reason == "deadline"
    assert ended.finish.message == "the deadline of this request passed while it was waiting"
    engine.submit(request("third", SAFE[5:10]))  # its place in the queue is free
    assert "second" not in engine.scheduler
    run(engine)


def test_a_deadline_in_the_past_is_news_of_the_next_step() -> None:
    clock = Clock()
    engine = small_engine(clock=clock)
    engine.submit(request("too late", SAFE[:5], deadline=99.0))
    [event] = engine.step()
    assert event.finish is not None and event.finish.reason == "deadline"
    assert not engine.has_work()


def test_deadlines_come_in_order_and_those_of_the_finished_are_forgotten() -> None:
    watched = Deadlines()
    order = list(range(1000))
    random.Random(0).shuffle(order)
    made = {}
    for number in order:
        spec = request(str(number), [1], deadline=float(number))
        made[number] = new_request(spec, number, frozenset(), 100)
        watched.add(made[number])
        if number % 10:
            made[number].phase = Phase.FINISHED
    watched.add(new_request(request("patient", [1]), 1000, frozenset(), 100))
    assert len(watched._heap) < 400
    assert [one.arrival for one in watched.take_expired(500.0)] == list(range(0, 501, 10))
    assert watched.take_expired(500.0) == []
    assert [one.arrival for one in watched.take_expired(1e9)] == list(range(510, 1000, 10))
    assert not watched
