"""The scheduler by itself: the rule of service, and that it never loses a page, a slot or a request."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import request
from stepped_scheduler import CONTEXT, Bench

from samebits.schedule.foresight import Foresight
from samebits.schedule.messages import Finish
from samebits.schedule.request import Phase, Request, judge_token, new_request
from samebits.schedule.scheduler import Scheduler


def test_decoding_goes_before_prefilling() -> None:
    bench = Bench(step_tokens=6)
    bench.add("old", 5)
    bench.step()
    bench.add("new", 20, start=50)
    assert bench.step() == {"old": (5, 6), "new": (0, 5)}
    assert bench.step() == {"old": (6, 7), "new": (5, 10)}


def test_a_stream_of_long_prompts_does_not_starve_a_short_one() -> None:
    bench = Bench(step_tokens=8, max_running=3, pages=200)
    for i in range(3):
        bench.add(f"long {i}", 60, start=i)
    short = bench.add("short", 3, new_tokens=1)
    steps = 0
    while short.phase is not Phase.FINISHED:
        bench.add(f"later {steps}", 60, start=steps)
        bench.step()
        steps += 1
    # The three before it have 60 + 4 tokens each; the step has room for 8.
    assert steps <= (3 * 64 + 4) // (8 - 3) + 4
    assert bench.served.index("short") <= 3


def test_nobody_is_admitted_past_an_earlier_one_that_does_not_fit() -> None:
    bench = Bench(pages=10, step_tokens=100)
    bench.add("first", 24)
    bench.add("big", 33, start=50)
    bench.add("small", 4, start=100)
    assert set(bench.step()) == {"first"}
    bench.run()
    assert bench.served == ["first", "big", "small"]


def test_higher_priority_goes_first() -> None:
    bench = Bench(max_running=1)
    bench.add("common", 4)
    bench.add("low", 4, priority=-1, start=10)
    bench.add("high", 4, priority=1, start=20)
    bench.add("higher", 4, priority=2, start=30)
    bench.run()
    assert bench.served == ["higher", "high", "common", "low"]


@pytest.mark.parametrize("scarce", [{"max_running": 2}, {"step_tokens": 2}, {"pages": 6}])
def test_who_runs_is_not_put_out_for_one_that_waits(scarce: dict[str, int]) -> None:
    bench = Bench(**({"step_tokens": 20, "max_running": 9, "pages": 99} | scarce))
    running = [bench.add(f"runs {i}", 4, new_tokens=8 + i, start=50 * i, priority=-1) for i in range(2)]
    while any(len(request.tokens) < 6 for request in running):
        bench.step()
    urgent = bench.add("urgent", 8, new_tokens=1, start=150, priority=1)
    bench.add("later", 8, new_tokens=1, start=100)
    while running[0].phase is Phase.RUNNING:
        assert "urgent" not in bench.step()
    bench.run()
    assert urgent.phase is Phase.FINISHED and bench.served[2:] == ["urgent", "later"]
    assert all(request.preemptions == 0 for request in running)


def test_those_who_left_while_they_waited_do_not_pile_up() -> None:
    bench = Bench(max_running=1)
    waiting = bench.add("waits", 4)
    for number in range(1000):
        while len(bench.scheduler.requests()) < 3:
            bench.add(f"important {bench.arrivals}", 4, priority=1, start=bench.arrivals)
        left = bench.add(f"leaves {number}", 4, start=number)
        bench.step()
        bench.scheduler.finish(left)
        bench.scheduler.check()
    assert waiting.phase is Phase.WAITING, "the load of higher priority went on"
    assert len(bench.scheduler._waiting) < 100
    bench.run()
    assert waiting.phase is Phase.FINISHED


def test_a_more_important_prompt_goes_before_one_that_is_half_computed() -> None:
    bench = Bench(step_tokens=8)
    bench.add("common", 40)
    assert bench.step() == {"common": (0, 8)}
    bench.add("urgent", 11, start=60, priority=1)
    bench.add("also common", 11, start=90)
    assert bench.step() == {"urgent": (0, 8)}
    assert bench.step() == {"urgent": (8, 11), "common": (8, 13)}


def test_the_last_in_the_order_is_preempted_and_computed_again() -> None:
    bench = Bench(pages=7, step_tokens=50)
    old = bench.add("old", 8, new_tokens=16)
    young = bench.add("young", 8, new_tokens=16, start=50)
    important = bench.add("important", 3, new_tokens=8, start=100, priority=1)
    bench.run()
    assert (important.preemptions, old.preemptions) == (0, 0)
    assert young.preemptions > 0
    assert len(young.tokens) == 24
    assert bench.scheduler.pool.used == bench.scheduler.cache.pages


def test_a_preempted_request_reuses_what_is_left_of_it() -> None:
    bench = Bench(pages=30, step_tokens=50)
    one = bench.add("one", 18, new_tokens=8)
    for _ in range(6):
        bench.step()
    assert len(one.tokens) == 24
    bench.scheduler.preempt(one)
    assert (one.computed, one.pages, one.slot) == (0, [], -1)
    # Its pages lie in the cache still, those of its output too.
    assert bench.step() == {"one": (20, 24)}
    assert one.cached_tokens == 0, "what a preempted request finds again is not a hit of the prompt"


def test_a_prompt_in_the_cache_is_not_computed_again() -> None:
    bench = Bench(step_tokens=50)
    bench.add("cold", 17, new_tokens=1)
    bench.run()
    warm = bench.add("warm", 17, new_tokens=1)
    assert bench.step() == {"warm": (16, 17)}
    assert warm.cached_tokens == 16
    bench.add("opt-out", 17, new_tokens=1, use_prefix_cache=False)
    assert bench.step() == {"opt-out": (0, 17)}
    bench.scheduler.flush_cache()
    bench.add("flushed", 17, new_tokens=1)
    assert bench.step() == {"flushed": (0, 17)}


def test_a_prompt_that_fills_its_pages_still_computes_its_last_token() -> None:
    bench = Bench(step_tokens=50)
    bench.add("cold", 16, new_tokens=1)
    bench.run()
    bench.add("warm", 16, new_tokens=1)
    assert bench.step() == {"warm": (12, 16)}


def test_an_older_request_does_not_wait_for_a_younger_one() -> None:
    """A page that a younger request fills half is filled by the older one too; both go on."""
    bench = Bench(step_tokens=2, pages=40)
    young = bench.add("young", 9, new_tokens=2)
    bench.step()
    old = bench.add("old", 9, new_tokens=2, priority=1)
    bench.run()
    assert bench.served == ["old", "young"]
    assert len(old.tokens) == len(young.tokens) == 11


def test_what_a_request_computes_itself_is_no_hit() -> None:
    bench = Bench(step_tokens=4)
    young = bench.add("young", 24)
    computed = [bench.step()["young"]]
    bench.add("old", 24, priority=1)
    while young.phase is not Phase.FINISHED:
        computed.append(bench.step().get("young", (24, 24)))
    tokens = sum(max(0, min(end, 24) - start) for start, end in computed)
    assert tokens == 8, "the first page, which nobody had, and the last, whose logits it needs"
    assert young.cached_tokens == 24 - tokens


def test_a_finished_owner_leaves_no_claim() -> None:
    bench = Bench(step_tokens=4)
    first = bench.add("first", 16)
    second = bench.add("second", 16)
    bench.step()
    assert bench.step().keys() == {"first"}, "the second waits for the page that the first fills"
    bench.scheduler.finish(first)
    assert "second" in bench.step()
    bench.scheduler.finish(second)
    bench.scheduler.check()
    assert bench.scheduler._sharing._claims == {}


REQUEST = st.tuples(
    st.integers(1, 30),
    st.integers(0, 12),
    st.sampled_from([0, 0, 3]),
    st.sampled_from([0, 0, 1, -1]),
    st.booleans(),
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(REQUEST, min_size=1, max_size=12),
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(11, 25),
    st.sampled_from([None, 0, 3, 4096]),
    st.data(),
)
def test_every_request_ends_and_nothing_leaks(
    requests: list[tuple[int, int, int, int, bool]],
    step_tokens: int,
    max_running: int,
    pages: int,
    assumed: int | None,
    data: st.DataObject,
) -> None:
    lengths = None if assumed is None else Foresight(assumed, remembered=3)
    bench = Bench(step_tokens, max_running, pages, foresight=lengths)
    made: list[Request] = []
    todo = list(enumerate(requests))
    for _ in range(20000):
        move = data.draw(st.sampled_from("aassss")) if todo else "s"
        if move == "a":
            number, (length, new_tokens, start, priority, use_cache) = todo.pop()
            made.append(
                bench.add(f"r{number}", length, new_tokens, start, priority, use_prefix_cache=use_cache)
            )
        elif not bench.scheduler.requests():
            if not todo:
                break
        else:
            assert bench.step(), "a step without work while requests are left"
    assert not bench.scheduler.requests() and not todo
    for one in made:
        assert one.phase is Phase.FINISHED
        assert len(one.tokens) == one.length_limit
    assert bench.scheduler.pool.used == bench.scheduler.cache.pages
    bench.scheduler.flush_cache()
    assert bench.scheduler.pool.used == 0


def test_tokens_are_judged_one_by_one() -> None:
    spec = request("judged", [1, 2], 3, stop_token_ids=[9])
    one = new_request(spec, 0, frozenset({7}), CONTEXT)
    one.tokens.append(5)
    assert judge_token(one, 5) is None
    assert judge_token(one, 9) == Finish(reason="stop", matched_token=9)
    assert judge_token(one, 7) is None, "the end-of-sequence token is ignored here"
    one.tokens += [5, 5]
    assert judge_token(one, 5) == Finish(reason="length")
    heedful = new_request(request("heedful", [1, 2], 3, ignore_eos=False), 0, frozenset({7}), CONTEXT)
    assert judge_token(heedful, 7) == Finish(reason="stop", matched_token=7)


def test_the_context_limits_the_length() -> None:
    one = new_request(request("long", range(20), 1000), 0, frozenset(), 50)
    assert one.length_limit == 50


def share_a_page(scheduler: Scheduler) -> None:
    """Give the last page of one request to the other too; every count and table agrees."""
    one, other = scheduler.running
    scheduler.pool.release([other.pages[-1]])
    other.pages[-1] = one.pages[-1]
    scheduler.pool.retain([one.pages[-1]])
    scheduler.page_table[other.slot, len(other.pages) - 1] = one.pages[-1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda scheduler: scheduler.running[0].pages.pop(), "references but"),
        (lambda scheduler: scheduler.running.reverse(), "out of order"),
        (lambda scheduler: scheduler._free_slots.append(0), "slots leak"),
        (lambda scheduler: setattr(scheduler, "_promised_pages", 1), "promised pages are miscounted"),
        (lambda scheduler: scheduler.page_table.fill(0), "page table is stale"),
        (lambda scheduler: setattr(scheduler, "_waiting_count", 5), "in no queue"),
        (lambda scheduler: setattr(scheduler.running[0], "computed", 0), "more is computed"),
        (lambda scheduler: setattr(scheduler.running[0], "computed", 60), "tokens without pages"),
        (lambda scheduler: setattr(scheduler.running[0], "cache_depth", 0), "not those of its path"),
        (share_a_page, "shared outside of the cache"),
    ],
)
def test_the_check_sees_what_is_spoiled(spoil: Callable[[Scheduler], object], message: str) -> None:
    bench = Bench(step_tokens=50)
    bench.add("a", 9)
    bench.add("b", 9, start=30)
    bench.step()
    bench.scheduler.check()
    spoil(bench.scheduler)
    with pytest.raises(AssertionError, match=message):
        bench.scheduler.check()
