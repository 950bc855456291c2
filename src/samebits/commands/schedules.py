"""`samebits verify schedules`: simulated schedules, in this process and its children; no model is loaded for it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from samebits.errors import ConfigError

if TYPE_CHECKING:
    from samebits.verify.simulation.schedules import SchedulesReport

MODE = "schedules"


def is_asked_for(modes: Sequence[str]) -> bool:
    """Whether the command line names this mode. Raises `ConfigError` when it names others beside it."""
    if MODE in modes and set(modes) != {MODE}:
        raise ConfigError(f"'{MODE}' checks simulated engines, not a target: run it by itself")
    return MODE in modes


def run(options: argparse.Namespace) -> int:
    """Run the schedules that `options` ask for and tell what was found."""
    from tqdm import tqdm

    from samebits.verify.simulation.schedules import run_schedules

    if options.url:
        raise ConfigError(f"'{MODE}' checks simulated engines in this process: leave --url out")
    start = time.monotonic()
    with tqdm(total=options.n_trials, unit="schedule", delay=2.0, disable=None) as bar:
        report = run_schedules(options.n_trials, options.seed, lambda done, total: bar.update(done - bar.n))
    seconds = time.monotonic() - start
    if options.json:
        json.dump(as_json(report, options, seconds), sys.stdout, indent=2)
        print()
    else:
        print("\n".join(lines(report, seconds)))
    return 0 if report.passed else 1


def lines(report: SchedulesReport, seconds: float) -> list[str]:
    """What a person reads."""
    from samebits.tables import align

    columns = (
        "requests",
        "tokens",
        "steps",
        "preemptions",
        "cached_tokens",
        "lost_steps",
        "aborts",
        "restarts",
        "expired",
    )
    rows = [("model", "schedules", *(name.replace("_", " ") for name in columns))]
    for model, number in sorted(report.schedules.items()):
        counts = asdict(report.counts[model]) if model in report.counts else dict.fromkeys(columns, 0)
        rows.append((model, str(number), *(str(counts[name]) for name in columns)))
    told = [*align(rows), ""]
    for failure in report.failures:
        told += [f"seed {failure.seed}, {failure.model} model: {failure.message}"]
        told += [f"  {line}" for line in failure.scenario]
        told += [f"  replay: {failure.command}", ""]
    verdict = "Every bit was the same." if report.passed else f"{len(report.failures)} schedules failed."
    return [*told, f"{sum(report.schedules.values())} schedules in {seconds:.0f} s. {verdict}"]


def as_json(report: SchedulesReport, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The report for machines, with what it was run on."""
    from samebits.bench.facts import machine

    return {
        "machine": machine(),
        "seed": options.seed,
        "schedules": report.schedules,
        "seconds": round(seconds, 1),
        "passed": report.passed,
        "counts": {model: asdict(counts) for model, counts in sorted(report.counts.items())},
        "failures": [{**asdict(failure), "command": failure.command} for failure in report.failures],
    }
