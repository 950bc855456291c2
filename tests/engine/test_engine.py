"""The engine over the fake model: every request has the bits of its run alone, whatever happens around it."""

from __future__ import annotations

import gc

import msgspec
import pytest
from small_engine import LOOPS, bits, bits_alone, request, run, small_engine, steps, streams

from samebits.engine.messages import AbortRequest, EngineRequest
from samebits.engine.validate import QueueFullError
from samebits.errors import RequestError
from samebits.schedule.request import Request
from samebits.verify.simulation.models import FAKE_RECIPE
from samebits.verify.simulation.sabotage import FaultPlan
from samebits.verify.simulation.scenario import FaultKind, Loop

SAFE = [token for token in range(20, 200)]
"""token ids without a meaning for the fake model or its saboteur"""


def mixed_requests() -> list[EngineRequest]:
    """Requests that differ in everything, with shared prefixes."""
    shared = SAFE[:23]
    return [
        request("greedy", shared, 6, temperature=0.0, output=True, top=3),
        request("warm", [*shared[:17], 90], 5, temperature=1.3, seed=7, output=True, token_ids=[5, 9]),
        request("scored", [*shared, 70, 71], 3, prompt_start=0, output=True, top=2),
        request("score only", shared[::-1], 0, prompt_start=5),
        request("penalties", [60, 61, 60, 61], 8, repetition_penalty=1.4, presence_penalty=0.5, output=True),
        request("processed", [80, 81], 4, top_k=4, output=True, processed=True, top=4),
        request("biased", [33], 6, logit_bias={50: 5.0}, min_p=0.05, frequency_penalty=1.0),
        request("early end", shared[:9], 12, stop_token_ids=SAFE[::2], min_new_tokens=2),
        request("sibling 0", shared, 4, seed=3),
        request("sibling 1", shared, 4, seed=3, sample_index=1),
        request("no cache", shared, 4, seed=3, use_prefix_cache=False),
    ]


def assert_same_bits(requests: list[EngineRequest], events: list) -> None:
    for stream in streams(requests, events).values():
        assert bits(stream) == bits_alone(stream.request), stream.request.rid


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("page_tokens", "step_tokens", "max_running"), [(1, 3, 3), (4, 16, 8), (7, 1, 11)])
def test_company_changes_no_bit(loop: Loop, page_tokens: int, step_tokens: int, max_running: int) -> None:
    engine = small_engine(page_tokens, 200, step_tokens, max_running, loop=loop)
    requests = mixed_requests()
    assert_same_bits(requests, run(engine, requests))


def test_the_comparison_sees_what_it_should() -> None:
    """The inverse: other seed, index, prompt or parameter, other bits."""
    base = request("base", SAFE[:9], 6, output=True, seed=5)
    others = [
        request("seed", SAFE[:9], 6, output=True, seed=6),
        request("index", SAFE[:9], 6, output=True, seed=5, sample_index=1),
        request("prompt", [*SAFE[:8], 77], 6, output=True, seed=5),
        request("order", SAFE[:9][::-1], 6, output=True, seed=5),
        request("temperature", SAFE[:9], 6, output=True, seed=5, temperature=0.1),
        request("penalty", SAFE[:9], 6, output=True, seed=5, repetition_penalty=9.0, top_k=2),
    ]
    assert len({bits_alone(one) for one in [base, *others]}) == 1 + len(others)


@pytest.mark.parametrize("loop", LOOPS)
def test_few_pages_preempt_and_change_no_bit(loop: Loop) -> None:
    engine = small_engine(page_tokens=4, pages=12, step_tokens=16, loop=loop)
    growing = [
        request(f"growing {i}", SAFE[i : i + 6], 24, output=True, seed=i, repetition_penalty=1.2)
        for i in range(6)
    ]
    requests = [*growing, *mixed_requests()]
    assert_same_bits(requests, run(engine, requests))
    assert engine.scheduler.preemptions > 3
    assert engine.scheduler.pool.used == engine.scheduler.cache.pages


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("phase", range(12))
def test_an_abort_at_any_step_spares_the_others(loop: Loop, phase: int) -> None:
    engine = small_engine(page_tokens=4, pages=24, step_tokens=7, max_running=4, loop=loop)
    requests = mixed_requests()
    for one in requests:
        engine.submit(one)
    events = steps(engine, phase)
    ended = {event.rid for event in events if event.finish}
    engine.abort(AbortRequest(rid="s", prefix=True))
    engine.abort(AbortRequest(rid="greedy"))
    events += run(engine)
    found = streams(requests, events)
    for rid, stream in found.items():
        named = rid.startswith("s") or rid == "greedy"
        if named and rid not in ended:
            assert stream.finish is not None and stream.finish.reason == "abort"
        else:
            assert bits(stream) == bits_alone(stream.request), rid
    assert engine.scheduler.pool.used == engine.scheduler.cache.pages


def test_abort_all_empties_the_engine() -> None:
    engine = small_engine(max_running=2)
    requests = mixed_requests()
    for one in requests:
        engine.submit(one)
    events = steps(engine, 2)
    engine.abort(AbortRequest())
    events += run(engine)
    assert all(stream.finish is not None for stream in streams(requests, events).values())
    assert not engine.scheduler.requests()
    engine.abort(AbortRequest(rid="nobody"))
    assert not engine.has_work()


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_is_kept_of_requests_that_ended(loop: Loop) -> None:
    """Their prompt logprobs may be larger than all else that an idle engine holds."""
    engine = small_engine(loop=loop)
    before = {id(entry) for entry in gc.get_objects() if type(entry) is Request}
    run(engine, mixed_requests())
    gc.collect()
    kept = [entry for entry in gc.get_objects() if type(entry) is Request and id(entry) not in before]
    assert [entry.rid for entry in kept] == []
    engine.close()


def test_a_request_longer_than_a_page_pool_is_refused_and_one_as_long_is_served() -> None:
    engine = small_engine(page_tokens=4, pages=4)
    with pytest.raises(RequestError, match="17 KV slots and the engine has 16"):
        engine.submit(request("long", SAFE[:9], 8))
    fitting = request("fitting", SAFE[:9], 7)
    assert_same_bits([fitting], run(engine, [fitting]))


def test_a_full_queue_refuses_and_recovers() -> None:
    engine = small_engine(max_running=1, max_waiting=2)
    engine.submit(request("a", SAFE[:5]))
    engine.submit(request("b", SAFE[:5]))
    with pytest.raises(QueueFullError):
        engine.submit(request("c", SAFE[:5]))
    steps(engine, 1)
    engine.submit(request("c", SAFE[:5]))
    with pytest.raises(RequestError, match="running already"):
        engine.submit(request("b", SAFE[:5]))
    run(engine)


def test_scoring_needs_no_sampling() -> None:
    one = request("score", SAFE[:21], 0, prompt_start=0)
    events = run(small_engine(step_tokens=4), [one])
    assert len(events) == 1 and events[0].token_ids == [] and events[0].finish is not None
    assert events[0].finish.reason == "length"
    scores = events[0].prompt_logprobs
    assert scores is not None and [score.token_id for score in scores] == SAFE[:21]
    assert scores[0].logprob is None and all(score.logprob is not None for score in scores[1:])


@pytest.mark.parametrize("step_tokens", [1, 3, 4, 5, 64])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 11, 20, 21])
def test_prompt_logprobs_across_chunks_and_after_cache_hits(step_tokens: int, start: int) -> None:
    engine = small_engine(page_tokens=4, step_tokens=step_tokens)
    warm = request("warm", SAFE[:21])
    run(engine, [warm])
    assert engine.scheduler.cache.pages
    one = request("scored", SAFE[:21], 2, prompt_start=start, output=True, top=2, token_ids=[3])
    events = run(engine, [one])
    assert_same_bits([one], events)
    scores = streams([one], events)["scored"].prompt_logprobs
    assert scores is not None and [score.token_id for score in scores] == SAFE[start:21]
    # Only what lies before the first scored token's own context can come from the cache.
    assert events[-1].cached_tokens == max(0, min(start, 21) - 1) // 4 * 4


def test_generating_is_scoring() -> None:
    """A text scored as a prompt has the logprobs that it had when it was generated."""
    one = request("generated", SAFE[:10], 9, temperature=0.8, output=True, top_p=0.9, repetition_penalty=1.2)
    generated = streams([one], run(small_engine(), [one]))["generated"]
    text = one.prompt_ids + generated.token_ids
    scored = request("scored", text, 0, prompt_start=10)
    found = streams([scored], run(small_engine(step_tokens=3), [scored]))["scored"]
    assert msgspec.msgpack.encode(found.prompt_logprobs) == msgspec.msgpack.encode(generated.logprobs)


def test_a_second_turn_reuses_the_first_ones_output() -> None:
    engine = small_engine(page_tokens=4)
    first = request("first", SAFE[:10], 11)
    answer = streams([first], run(engine, [first]))["first"].token_ids
    second = request("second", [*SAFE[:10], *answer, 40, 41], 3)
    events = run(engine, [second])
    assert events[-1].cached_tokens == 20  # the last token of the answer was never computed
    assert_same_bits([second], events)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("twins", [False, True])
def test_siblings_and_equal_prompts_are_computed_once(loop: Loop, twins: bool) -> None:
    engine = small_engine(page_tokens=4, pages=200, step_tokens=8, loop=loop)
    requests = [
        request(f"sibling {i}", SAFE[:33], 3, sample_index=0 if twins else i, seed=i if twins else 7)
        for i in range(6)
    ]
    assert_same_bits(requests, run(engine, requests))
    # Each sibling computes its own last, partial page; the 8 pages before it are computed by the first.
    assert engine.counters.prompt_tokens == 33 + 5 * 1
    assert engine.counters.cached_tokens == 5 * 32


@pytest.mark.parametrize("loop", LOOPS)
def test_a_waiting_sibling_survives_the_one_it_waits_for(loop: Loop) -> None:
    engine = small_engine(page_tokens=4, step_tokens=4, loop=loop)
    requests = [request(f"sibling {i}", SAFE[:33], 3, sample_index=i) for i in range(3)]
    for one in requests:
        engine.submit(one)
    events = steps(engine, 4)
    engine.abort(AbortRequest(rid="sibling 0"))
    events += run(engine)
    found = streams(requests, events)
    assert [bits(found[f"sibling {i}"]) == bits_alone(requests[i]) for i in range(3)] == [False, True, True]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("token", "pages", "message"),
    [
        pytest.param(FAKE_RECIPE.unsound_token, 64, "not finite", id="unsound key"),
        pytest.param(FAKE_RECIPE.breaking_token, 14, "InjectedError", id="breaks every step"),
    ],
)
def test_a_request_that_cannot_be_computed_fails_alone(
    loop: Loop, token: int, pages: int, message: str
) -> None:
    requests = mixed_requests()
    doomed = request("doomed", [*SAFE[:23], token, 50], 4)
    events = run(small_engine(loop=loop, pages=pages), [*requests[:5], doomed, *requests[5:]])
    found = streams([*requests, doomed], events)
    failed = found.pop("doomed")
    assert failed.finish is not None and failed.finish.reason == "error" and not failed.token_ids
    assert message in failed.finish.message
    for stream in found.values():
        assert bits(stream) == bits_alone(stream.request), stream.request.rid


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["forward", "memory", "pages"])
def test_a_lost_step_fails_nobody(loop: Loop, kind: FaultKind) -> None:
    for when in range(6):
        plan = FaultPlan()
        engine = small_engine(page_tokens=4, pages=14, step_tokens=7, loop=loop, plan=plan)
        requests = mixed_requests()
        for one in requests:
            engine.submit(one)
        events = steps(engine, when)
        plan.armed = kind
        events += run(engine)
        assert plan.armed is None, "the fault did not strike"
        assert_same_bits(requests, events)


def test_no_request_is_blamed_for_an_engine_that_cannot_choose_a_step() -> None:
    engine = small_engine()
    engine.submit(request("waiting", SAFE[:5]))
    engine.scheduler._entry = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        engine.step()


def test_without_a_prefix_cache_nothing_is_kept_and_no_bit_changes() -> None:
    requests = mixed_requests()
    for prefix_cache in (False, True):
        engine = small_engine()
        engine.prefix_cache = prefix_cache
        assert_same_bits(requests, run(engine, requests))
        assert (engine.status(0).cached_pages > 0) == prefix_cache
        assert (engine.status(0).cached_tokens > 0) == prefix_cache
