"""Simulated schedules: each request has the bits of its run alone, and a run of schedules is a function of its seed."""

from __future__ import annotations

from collections import Counter

from mutations import MUTATIONS

from samebits.verify.simulation.generate import generate
from samebits.verify.simulation.models import FAKE_RECIPE
from samebits.verify.simulation.scenario import Restart, Submit
from samebits.verify.simulation.schedules import (
    REAL_EVERY,
    model_of,
    run_schedules,
    run_trial,
    scenario_of,
    simulated_model,
)
from samebits.verify.simulation.shrink import shrink
from samebits.verify.simulation.simulate import run_scenario

TRIALS = 5 * REAL_EVERY


def test_schedules_change_no_bit() -> None:
    report = run_schedules(TRIALS, seed=0)
    assert report.passed, [
        (failure.command, failure.message, failure.scenario) for failure in report.failures
    ]
    assert report.schedules == {"fake": TRIALS - 5, "tiny": 5}
    # What a schedule is made of did happen; else the comparison would say nothing.
    assert min(vars(report.counts["fake"]).values()) > 0, report.counts
    assert report.counts["tiny"].tokens > 0 and report.counts["tiny"].cached_tokens > 0


def test_a_seed_is_the_whole_story() -> None:
    seeds = [seed for seed in range(1000, 1030) if model_of(seed) == "fake"]
    assert [generate(seed, FAKE_RECIPE) for seed in seeds] == [generate(seed, FAKE_RECIPE) for seed in seeds]
    assert [run_trial(seed) for seed in seeds] == [run_trial(seed) for seed in seeds]
    assert len({generate(seed, FAKE_RECIPE).lines()[1] for seed in seeds}) > 20


def test_scenarios_are_of_every_kind() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(300):
        scenario = generate(seed, FAKE_RECIPE)
        kinds[scenario.loop] += 1
        kinds.update(type(timed.event).__name__ for timed in scenario.events)
        submits = [timed.event for timed in scenario.events if isinstance(timed.event, Submit)]
        kinds["turn"] += any(submit.follows for submit in submits)
        kinds["sibling"] += any(submit.request.sampling.sample_index for submit in submits)
        kinds["grammar"] += any(submit.request.grammar for submit in submits)
        kinds["opt-out"] += any(not submit.request.use_prefix_cache for submit in submits)
        kinds["score only"] += any(submit.request.sampling.max_new_tokens == 0 for submit in submits)
        kinds["priority"] += len({submit.request.priority for submit in submits}) > 1
        kinds["deadline"] += any(submit.patience for submit in submits)
        solo, company = scenario.solo_sizes, scenario.sizes
        assert solo.page_tokens != company.page_tokens and solo.step_tokens != company.step_tokens
        kinds["full queue"] += scenario.sizes.max_waiting < len(submits)
    assert min(kinds.values()) >= 20, kinds
    assert len(kinds) == 16, kinds


def test_a_failing_seed_is_replayed_and_shrunk() -> None:
    seed = next(seed for seed in range(100) if len(scenario_of(seed).events) > 8 and model_of(seed) == "fake")
    with MUTATIONS["noise_keyed_by_step"]():
        report = run_schedules(1, seed, processes=1)
    assert not report.passed
    (failure,) = report.failures
    assert failure.command == f"samebits verify schedules --seed {seed} --n-trials 1"
    assert "Submit" in "".join(failure.scenario)
    assert len(failure.scenario) - 3 < len(scenario_of(seed).events)
    assert run_schedules(1, seed, processes=1).passed


def test_shrinking_keeps_what_matters() -> None:
    scenarios = (generate(seed, FAKE_RECIPE) for seed in range(200))
    scenario = next(one for one in scenarios if any(isinstance(timed.event, Restart) for timed in one.events))
    smaller = shrink(scenario, lambda one: any(isinstance(timed.event, Restart) for timed in one.events))
    assert [type(timed.event) for timed in smaller.events] == [Restart]
    run_scenario(smaller, simulated_model("fake"))
