"""Many simulated schedules, over processes: the mode `schedules` of `samebits verify`.

Trial `i` of seed `s` is the scenario of seed `s + i`, so a failing one is replayed by its own seed and one trial.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch

from samebits.numerics.profiles import make_operators
from samebits.verify.simulation.generate import generate
from samebits.verify.simulation.models import fake_model, tiny_model
from samebits.verify.simulation.scenario import Scenario
from samebits.verify.simulation.shrink import shrink
from samebits.verify.simulation.simulate import Counts, SimulatedModel, run_scenario

REAL_EVERY = 21
"""One seed in this many is of the tiny real model, the others of the fake one."""
SEEDS_AT_ONCE = 5

Progress = Callable[[int, int], None]
"""Called with (trials done, trials in all)."""


@dataclass(frozen=True)
class Failure:
    """A schedule that went wrong."""

    seed: int
    model: str
    message: str
    scenario: list[str] = field(default_factory=list)
    """the shrunk scenario for people, if it was shrunk"""

    @property
    def command(self) -> str:
        """Replays it."""
        return f"samebits verify schedules --seed {self.seed} --n-trials 1"


@dataclass
class SchedulesReport:
    """What a run of schedules found."""

    schedules: dict[str, int] = field(default_factory=dict)
    """by model"""
    counts: dict[str, Counts] = field(default_factory=dict)
    """what happened in them, by model"""
    failures: list[Failure] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures and bool(self.schedules)


@dataclass(frozen=True)
class Trial:
    """The outcome of one seed."""

    seed: int
    model: str
    counts: Counts | None
    message: str = ""


def model_of(seed: int) -> str:
    """The name of the model that a seed's scenario runs on."""
    return "tiny" if seed % REAL_EVERY == REAL_EVERY - 1 else "fake"


@cache
def simulated_model(name: str) -> SimulatedModel:
    """The model of that name; made once a process."""
    operators = make_operators("exact", "cpu", threads=1)
    return tiny_model(operators) if name == "tiny" else fake_model(operators)


def scenario_of(seed: int) -> Scenario:
    return generate(seed, simulated_model(model_of(seed)).recipe)


def run_trial(seed: int) -> Trial:
    """Simulate the scenario of a seed. Whatever is raised in there is a finding."""
    name = model_of(seed)
    try:
        return Trial(seed, name, run_scenario(scenario_of(seed), simulated_model(name)))
    except Exception as error:
        return Trial(seed, name, None, _told(error))


def run_schedules(
    n_trials: int,
    seed: int,
    progress: Progress = lambda done, total: None,
    processes: int = 0,
    most_failures: int = 3,
) -> SchedulesReport:
    """Simulate the schedules of the seeds `seed .. seed + n_trials - 1` in `processes` processes (0: one a core;
    1: in this one). Stops early after `most_failures`; each is shrunk."""
    processes = processes or len(os.sched_getaffinity(0))
    seeds = range(seed, seed + n_trials)
    report = SchedulesReport()
    with _trials(seeds, min(processes, -(-n_trials // SEEDS_AT_ONCE))) as trials:
        for done, trial in enumerate(trials, start=1):
            report.schedules[trial.model] = report.schedules.get(trial.model, 0) + 1
            if trial.counts is None:
                report.failures.append(_explained(trial))
                if len(report.failures) >= most_failures:
                    break
            else:
                report.counts.setdefault(trial.model, Counts()).add(trial.counts)
            progress(done, n_trials)
    return report


@contextmanager
def _trials(seeds: Iterable[int], processes: int) -> Iterator[Iterable[Trial]]:
    if processes <= 1:
        with _quiet():
            yield map(run_trial, seeds)
        return
    # Spawned, for a forked process inherits locks of the numerics' threads.
    with multiprocessing.get_context("spawn").Pool(processes, _start_process) as pool:
        yield pool.imap_unordered(run_trial, seeds, chunksize=SEEDS_AT_ONCE)


def _start_process() -> None:
    torch.set_num_threads(1)
    logging.getLogger("samebits").setLevel(logging.CRITICAL)


@contextmanager
def _quiet() -> Iterator[None]:
    """Injected faults fill the log otherwise."""
    logger = logging.getLogger("samebits")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _explained(trial: Trial) -> Failure:
    model = simulated_model(trial.model)

    def fails(scenario: Scenario) -> bool:
        try:
            run_scenario(scenario, model)
        except Exception:
            return True
        return False

    with _quiet():
        scenario = scenario_of(trial.seed)
        if not fails(scenario):
            return Failure(trial.seed, trial.model, trial.message + " (but not when it was run again)")
        smaller = shrink(scenario, fails)
    return Failure(trial.seed, trial.model, trial.message, smaller.lines())


def _told(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return f"{type(error).__name__}: {error} (raised at {place})"
