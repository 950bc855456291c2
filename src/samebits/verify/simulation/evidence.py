"""What runs of schedules add up to: one file, to which every run, or every finished report of one, is appended.

Runs of the same commit on the same kind of machine are one entry. No seed counts twice, whatever the commit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from samebits.errors import ConfigError
from samebits.verify.simulation.schedules import model_of

Report = Mapping[str, Any]
"""what `samebits verify schedules --json` prints"""
Evidence = dict[str, Any]
_OF_THE_RUN = ("commit", "command", "date")
"""facts of a report's `machine` that are not the machine's"""


def read(path: Path) -> Evidence:
    """The evidence in a file; none yet where there is no file. Raises `ConfigError` naming the file."""
    if not path.exists():
        return {"totals": {}, "runs": []}
    try:
        evidence = json.loads(path.read_text())
        assert isinstance(evidence["runs"], list)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(f"{path} is no file of schedules: {error}") from error
    return dict(evidence)


def append(path: Path, *reports: Report) -> Evidence:
    """Add reports to a file, all or none. Raises `ConfigError` where seeds would count twice."""
    evidence = read(path)
    for report in reports:
        evidence = added(evidence, report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(evidence, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return evidence


def check_new(evidence: Evidence, first: int, last: int) -> None:
    """Raise `ConfigError` where a seed of first .. last is counted already."""
    for run in evidence["runs"]:
        for begin, end in run["seeds"]:
            if first <= end and begin <= last:
                raise ConfigError(f"seeds {max(first, begin)} to {min(last, end)} are counted already")


def added(evidence: Evidence, report: Report) -> Evidence:
    """The evidence with one report more. Raises `ConfigError` for seeds that are in it, and for a report whose
    numbers do not fit its seeds."""
    new = _run_of(report)
    check_new(evidence, *new["seeds"][0])
    runs = [dict(run) for run in evidence["runs"]]
    same = next((run for run in runs if all(run[key] == new[key] for key in ("machine", "commit"))), None)
    if same is None:
        runs.append(new)
    else:
        same.update(_joined(same, new))
    return {"totals": _totals(runs), "runs": runs}


def _run_of(report: Report) -> dict[str, Any]:
    """A report as an entry of its own."""
    try:
        machine, seed = report["machine"], report["seed"]
        schedules, failures = dict(report["schedules"]), list(report["failures"])
        number = report.get("n_trials", sum(schedules.values()))
        entry = {
            "machine": {key: value for key, value in machine.items() if key not in _OF_THE_RUN},
            "commit": machine["commit"],
            "command": machine["command"],
            "reports": 1,
            "dates": [machine["date"], machine["date"]],
            "seeds": [[seed, seed + number - 1]],
            "schedules": schedules,
            "seconds": report["seconds"],
            "counts": dict(report["counts"]),
            "failures": failures,
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"this is no report of schedules: {error!r}") from error
    expected = Counter(model_of(one) for one in range(seed, seed + number))
    if not failures and Counter(schedules) != expected:
        raise ConfigError(f"the report of seed {seed} tells of {schedules} schedules: it is not whole")
    return entry


def _joined(run: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two entries of one commit and machine as one. `command` stays that of the first report."""
    dates = [*run["dates"], *other["dates"]]
    models = sorted({*run["counts"], *other["counts"]})
    return {
        "reports": run["reports"] + other["reports"],
        "dates": [min(dates), max(dates)],
        "seeds": list(_merged([*run["seeds"], *other["seeds"]])),
        "schedules": _sum(run["schedules"], other["schedules"]),
        "seconds": round(run["seconds"] + other["seconds"], 1),
        "counts": {
            model: _sum(run["counts"].get(model, {}), other["counts"].get(model, {})) for model in models
        },
        "failures": [*run["failures"], *other["failures"]],
    }


def _totals(runs: list[dict[str, Any]]) -> dict[str, Any]:
    schedules: dict[str, int] = {}
    for run in runs:
        schedules = _sum(schedules, run["schedules"])
    return {
        "schedules": schedules,
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "failures": sum(len(run["failures"]) for run in runs),
    }


def _merged(ranges: list[list[int]]) -> Iterator[list[int]]:
    """Ranges of seeds, first and last of each, with neighbours made one."""
    current: list[int] | None = None
    for begin, end in sorted(ranges):
        if current is not None and begin == current[1] + 1:
            current[1] = end
        else:
            if current is not None:
                yield current
            current = [begin, end]
    if current is not None:
        yield current


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in dict.fromkeys([*one, *other])}
