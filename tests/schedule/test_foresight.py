"""Memory foretold before admission: fewer requests are preempted, and none is held up for nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import request
from stepped_scheduler import CONTEXT, Bench

from samebits.bench.admission import AdmissionLoad, Served, Visit, serve
from samebits.schedule.foresight import Foresight, most_pages, steps_until_short
from samebits.schedule.request import Phase, Request, new_request

ASSUMED = 4096


def fresh(number: int, answer: int = 0, limit: int = 100_000) -> Request:
    """Request `number` with a prompt of 7 tokens and `answer` more."""
    made = new_request(request(f"r{number}", [1] * 7, limit), number, frozenset(), 1_000_000)
    made.tokens += [1] * answer
    return made


def knowing(*answers: int, cut: tuple[int, ...] = ()) -> Foresight:
    """Of answers that ended by themselves, and of some that their limit cut."""
    lengths = Foresight(ASSUMED, remembered=len(answers) + len(cut))
    for answer in answers:
        lengths.learn(answer, cut=False)
    for answer in cut:
        lengths.learn(answer, cut=True)
    return lengths


def remaining(lengths: Foresight, *requests: Request) -> list[int]:
    return lengths.remaining(requests).tolist()


def test_before_any_answer_has_ended_all_are_assumed_to_be_long() -> None:
    lengths = Foresight(ASSUMED)
    assert remaining(lengths, fresh(0), fresh(1, 1000), fresh(2, limit=16)) == [4096, 3096, 16]


def test_requests_are_dealt_the_lengths_of_recent_answers_evenly() -> None:
    lengths = knowing(*range(1, 101))
    dealt = sorted(remaining(lengths, *(fresh(number) for number in range(100))))
    assert max(abs(got - wanted) for got, wanted in zip(dealt, range(1, 101), strict=True)) <= 2
    assert dealt != remaining(lengths, *(fresh(number) for number in range(100))), "dealt in order of arrival"


def test_what_a_request_has_outgrown_is_not_dealt_to_it() -> None:
    lengths = knowing(*[10] * 50, *[500] * 50)
    assert set(remaining(lengths, *(fresh(number, 10) for number in range(20)))) == {490}
    assert set(remaining(lengths, *(fresh(number, 9) for number in range(20)))) == {1, 491}
    assert remaining(lengths, fresh(0, 600), fresh(0, 600, limit=700)) == [ASSUMED - 600, 100]
    assert remaining(lengths, fresh(0, 5000), fresh(0, 5000, limit=6000)) == [5000, 1000]


def test_an_answer_that_its_limit_cut_tells_nothing_of_longer_ones() -> None:
    plain = knowing(*[500] * 20)
    hundred = [fresh(number) for number in range(100)]
    assert remaining(knowing(*[500] * 20, cut=(16,) * 60), *hundred) == remaining(plain, *hundred)
    assert set(remaining(knowing(*[500] * 20, *[16] * 60), *hundred)) == {16, 500}, "one that ended does"
    assert set(remaining(knowing(cut=(1024,) * 9), *hundred)) == {ASSUMED}
    assert set(remaining(knowing(cut=(8192,) * 9), *hundred)) == {8192}


def test_answers_that_were_cut_late_are_evidence_of_long_ones() -> None:
    """Half of eight end at 100, and all of the others go on past 1,000."""
    lengths = knowing(*[100] * 4, cut=(1000,) * 4)
    dealt = remaining(lengths, *(fresh(number) for number in range(100)))
    assert set(dealt) == {100, ASSUMED} and 45 <= dealt.count(100) <= 55
    assert set(remaining(lengths, *(fresh(number, 100) for number in range(20)))) == {ASSUMED - 100}


def test_the_oldest_answer_is_forgotten() -> None:
    lengths = knowing(5, 6, 7)
    lengths.learn(8, cut=False)
    lengths.learn(8, cut=False)
    assert set(remaining(lengths, *(fresh(number) for number in range(30)))) == {7, 8}


REQUESTS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=8)


@given(REQUESTS)
def test_the_most_pages_are_those_of_the_worst_moment(pairs: list[tuple[int, int]]) -> None:
    """With pages of one token nothing is rounded: the moments can be walked one by one."""
    moments = [
        sum(held + step for held, left in pairs if left >= step)
        for step in range(max(left for _, left in pairs) + 1)
    ]
    held, left = (np.array(column) for column in zip(*pairs, strict=True))
    assert most_pages(held, left, 1) == max(moments)
    for pages in {moments[0], max(moments) - 1, max(moments)}:
        short = [step for step, wanted in enumerate(moments) if wanted > pages]
        wanted_steps = max(0, short[0] - 1) if short else 99
        assert math.floor(min(steps_until_short(held, left, 1, pages), 99)) == wanted_steps


def uniform(number: int, prompt: int, answer: int, most: int, kv_tokens: int) -> AdmissionLoad:
    return AdmissionLoad("uniform", (Visit(0.0, prompt, answer, most),) * number, kv_tokens=kv_tokens)


def both(load: AdmissionLoad) -> tuple[Served, Served]:
    """Foretold, and without."""
    return serve(load, Foresight(ASSUMED)), serve(load, None)


def test_long_answers_that_all_come_at_once_are_not_preempted() -> None:
    """A sixteenth of 256 requests of 4k/4k on a card that has room for 96 of them."""
    foretold, at_the_moment = both(uniform(256, 256, 256, 256, 792_320 // 16))
    assert (foretold.preemptions, foretold.computed_tokens) == (0, foretold.wanted_tokens)
    assert at_the_moment.preemptions > 100
    assert foretold.computed_tokens < at_the_moment.computed_tokens
    assert foretold.longest_pause < at_the_moment.longest_pause / 10
    assert foretold.seconds < at_the_moment.seconds


def test_a_limit_that_no_answer_reaches_does_not_hold_others_up() -> None:
    """Room for two by their limits, for a hundred by their lengths."""
    load = uniform(400, 256, 100, 16_384, 36_000)
    foretold, at_the_moment = both(load)
    assert foretold.preemptions <= at_the_moment.preemptions
    assert foretold.steps < 1.5 * at_the_moment.steps
    unteachable = Foresight(16_384, step_price=0)
    unteachable.learn = lambda tokens, cut: None  # type: ignore[method-assign]
    assert serve(load, unteachable).steps > 20 * at_the_moment.steps, "what the test guards against"


def test_few_requests_are_better_preempted_than_kept_waiting() -> None:
    """Where four are served at a time, a step costs about as much with five."""
    load = uniform(40, 1024, 1024, 1024, 9000)
    foretold, at_the_moment = both(load)
    assert foretold.seconds < 1.02 * at_the_moment.seconds
    strict = serve(load, Foresight(ASSUMED, step_price=0))
    assert strict.preemptions == 0 and strict.seconds > 1.15 * at_the_moment.seconds


def test_schedules_stay_as_they_are_where_memory_suffices() -> None:
    foretold, at_the_moment = both(uniform(80, 200, 150, 160, 80 * 384))
    assert foretold == at_the_moment
    foretold, at_the_moment = both(uniform(80, 200, 150, 160, 60 * 384))
    assert foretold != at_the_moment, "where it does not, they change"


VISIT = st.builds(
    lambda arrival, prompt, answer, more: Visit(arrival, prompt, answer, answer + more),
    st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    st.integers(1, 400),
    st.integers(1, 300),
    st.sampled_from([0, 0, 10, 5000]),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(VISIT, min_size=1, max_size=30), st.sampled_from([0, 64, ASSUMED]), st.sampled_from([0, 20, 180])
)
def test_everybody_is_served_in_turn_and_the_same_again(
    visits: list[Visit], assumed: int, price: int
) -> None:
    visits.sort(key=lambda visit: visit.arrival)
    load = AdmissionLoad("any", tuple(visits), kv_tokens=6000)
    first, again = (serve(load, Foresight(assumed, 8, price)) for _ in range(2))
    assert first == again
    assert len(first.ends) == len(visits)
    began = [visit.arrival + first.first_tokens[str(number)] for number, visit in enumerate(visits)]
    assert began == sorted(began), "a later request overtook an earlier one"


def strict() -> Foresight:
    """By which nobody starts who is expected to be preempted."""
    return Foresight(ASSUMED, step_price=0)


def running(bench: Bench, *requests: Request) -> list[bool]:
    return [one.phase is Phase.RUNNING for one in requests]


def test_who_is_expected_to_grow_into_the_others_waits_until_they_have_ended() -> None:
    bench = Bench(pages=20, step_tokens=50, foresight=strict())
    first, second = bench.add("first", 8, new_tokens=40), bench.add("second", 8, new_tokens=40, start=50)
    bench.step()
    assert running(bench, first, second) == [True, False]
    assert bench.scheduler.expected_pages() == 12
    bench.run()
    assert bench.scheduler.preemptions == 0
    greedy = Bench(pages=20, step_tokens=50)
    both_fit = greedy.add("first", 8, new_tokens=40), greedy.add("second", 8, new_tokens=40, start=50)
    greedy.step()
    assert running(greedy, *both_fit) == [True, True] and greedy.scheduler.expected_pages() == 0
    greedy.run()
    assert greedy.scheduler.preemptions > 0


def test_with_nobody_before_it_a_request_that_fits_alone_is_admitted() -> None:
    bench = Bench(pages=20, step_tokens=50, foresight=strict())
    common = bench.add("common", 8, new_tokens=CONTEXT)
    bench.step()
    urgent = bench.add("urgent", 8, new_tokens=CONTEXT, start=50, priority=1)
    bench.step()
    assert running(bench, common, urgent) == [True, True], "the growth of later ones is no reason to wait"
    later = bench.add("later", 8, new_tokens=CONTEXT, start=100)
    bench.step()
    assert running(bench, later) == [False]


def test_a_preempted_request_comes_back_before_the_others() -> None:
    lengths = Foresight(0, remembered=1)
    bench = Bench(pages=12, step_tokens=50, foresight=lengths)
    made = [bench.add(f"r{number}", 8, new_tokens=30, start=40 * number) for number in range(4)]
    bench.run()
    assert made[1].preemptions > 0, "none was expected to grow"
    assert bench.served == ["r0", "r1", "r2", "r3"]


@pytest.mark.parametrize(("start", "fits"), [(0, True), (50, False)])
def test_cached_pages_that_others_use_are_not_counted_again(start: int, fits: bool) -> None:
    bench = Bench(pages=22, step_tokens=60, foresight=strict())
    bench.add("first", 41, new_tokens=12)
    bench.step()
    bench.step()
    second = bench.add("second", 41, new_tokens=8, start=start)
    bench.step()
    assert running(bench, second) == [fits]


def test_cached_pages_that_nobody_uses_count_as_free() -> None:
    bench = Bench(pages=20, step_tokens=90, foresight=strict())
    bench.add("old", 71, new_tokens=1)
    bench.run()
    assert bench.scheduler.cache.pages == 17
    two = bench.add("one", 20, new_tokens=12, start=80), bench.add("other", 20, new_tokens=12, start=120)
    bench.step()
    assert running(bench, *two) == [True, True]


@pytest.mark.parametrize(
    ("answer", "expected"), [(3, {3}), (9, {ASSUMED}), (0, {ASSUMED})], ids=("ended", "cut", "no token")
)
def test_what_the_scheduler_learns_of_a_request_that_ends(answer: int, expected: set[int]) -> None:
    lengths = Foresight(ASSUMED, remembered=1)
    bench = Bench(foresight=lengths)
    one = bench.add("one", 8, new_tokens=9)
    one.tokens += [1] * answer
    bench.scheduler.finish(one)
    assert set(remaining(lengths, fresh(0), fresh(1))) == expected
