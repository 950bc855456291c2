"""`samebits verify schedules`: simulated schedules, in this process and its children; no model is loaded for it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
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
    """Run the schedules that `options` ask for and tell what was found, or add up what other runs found."""
    from samebits.verify.simulation import evidence

    if options.url:
        raise ConfigError(f"'{MODE}' checks simulated engines in this process: leave --url out")
    if options.append is None:
        if options.reports:
            raise ConfigError("--reports needs --append, the file to add them to")
        return run_here(options)
    kept = evidence.read(options.append)
    if options.reports:
        kept = evidence.append(options.append, *map(read_report, options.reports))
        print(total_line(kept, options.append))
        return 0 if not kept["totals"]["failures"] else 1
    evidence.check_new(kept, options.seed, options.seed + options.n_trials - 1)
    return run_here(options)


def run_here(options: argparse.Namespace) -> int:
    """Run the schedules that `options` ask for, tell what was found, and add it to the file of `--append`."""
    from tqdm import tqdm

    from samebits.verify.simulation import evidence
    from samebits.verify.simulation.schedules import run_schedules

    start = time.monotonic()
    with tqdm(total=options.n_trials, unit="schedule", delay=2.0, disable=None) as bar:
        report = run_schedules(options.n_trials, options.seed, lambda done, total: bar.update(done - bar.n))
    seconds = time.monotonic() - start
    told = as_json(report, options, seconds)
    if options.json:
        json.dump(told, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(lines(report, seconds)))
    if options.append is not None:
        kept = evidence.append(options.append, told)
        print(total_line(kept, options.append), file=sys.stderr if options.json else sys.stdout)
    return 0 if report.passed else 1


def read_report(path: Path) -> dict[str, Any]:
    """What a run with `--json` has printed. Raises `ConfigError` naming the file."""
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the report {path}: {error}") from error
    if not isinstance(report, dict):
        raise ConfigError(f"{path} holds no report")
    return report


def total_line(kept: Mapping[str, Any], path: Path) -> str:
    """What a file of runs adds up to."""
    totals = kept["totals"]
    numbers = " and ".join(f"{number} {model}" for model, number in sorted(totals["schedules"].items()))
    return f"{path}: {numbers} schedules, {totals['failures']} failed, {totals['seconds']:.0f} s"


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
        "n_trials": options.n_trials,
        "schedules": report.schedules,
        "seconds": round(seconds, 1),
        "passed": report.passed,
        "counts": {model: asdict(counts) for model, counts in sorted(report.counts.items())},
        "failures": [{**asdict(failure), "command": failure.command} for failure in report.failures],
    }
