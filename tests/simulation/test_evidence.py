"""Runs of schedules add up, and nothing counts twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samebits.cli import main
from samebits.errors import ConfigError
from samebits.verify.simulation import evidence
from samebits.verify.simulation.schedules import model_of

COMMITTED = Path(__file__).parents[2] / "results" / "schedules.json"


def report(seed: int, number: int, commit: str = "abc", device: str = "a machine", **others: Any) -> Any:
    schedules: dict[str, int] = {}
    for one in range(seed, seed + number):
        schedules[model_of(one)] = schedules.get(model_of(one), 0) + 1
    made = {
        "machine": {"device": device, "commit": commit, "command": f"seed {seed}", "date": f"day {seed}"},
        "seed": seed,
        "n_trials": number,
        "schedules": schedules,
        "seconds": 1.5,
        "passed": True,
        "counts": {model: {"steps": 10 * count} for model, count in schedules.items()},
        "failures": [],
    }
    return made | others


def test_runs_of_one_commit_and_machine_are_one_entry(tmp_path: Path) -> None:
    path = tmp_path / "new" / "schedules.json"
    for seed in (42, 0, 21):
        kept = evidence.append(path, report(seed, 21))
    assert kept == evidence.read(path)
    [run] = kept["runs"]
    assert run["seeds"] == [[0, 62]] and run["reports"] == 3 and run["dates"] == ["day 0", "day 42"]
    assert kept["totals"] == {"schedules": {"fake": 60, "tiny": 3}, "seconds": 4.5, "failures": 0}
    assert run["counts"] == {"fake": {"steps": 600}, "tiny": {"steps": 30}}
    kept = evidence.append(path, report(100, 5, commit="def"), report(200, 5, device="another"))
    assert [run["seeds"] for run in kept["runs"]] == [[[0, 62]], [[100, 104]], [[200, 204]]]
    assert sum(kept["totals"]["schedules"].values()) == 73


@pytest.mark.parametrize("seed", [0, 62, -3, 30])
def test_no_seed_counts_twice(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "schedules.json"
    evidence.append(path, report(0, 63))
    before = path.read_text()
    with pytest.raises(ConfigError, match="counted already"):
        evidence.append(path, report(1000, 5), report(seed, 5, commit="def"))
    assert path.read_text() == before


def test_what_is_no_whole_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedules.json"
    for wrong, message in (
        (report(0, 30, schedules={"fake": 29}), "not whole"),
        ({"seed": 3}, "no report"),
        (report(0, 30, machine=None), "no report"),
    ):
        with pytest.raises(ConfigError, match=message):
            evidence.append(path, wrong)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="no file of schedules"):
        evidence.read(path)


def test_a_failure_is_kept_and_told(tmp_path: Path) -> None:
    path = tmp_path / "schedules.json"
    broken = report(0, 30, schedules={"fake": 3}, passed=False, failures=[{"seed": 2}])
    assert evidence.append(path, broken)["totals"]["failures"] == 1


def test_the_command_appends_its_run_or_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, printed = tmp_path / "schedules.json", tmp_path / "report.json"
    command = ["verify", "schedules", "--n-trials", "3", "--append", str(path)]
    assert main([*command, "--seed", "1"]) == 0
    assert "3 fake schedules, 0 failed" in capsys.readouterr().out
    assert main([*command, "--seed", "3"]) == 2
    assert "seeds 3 to 3 are counted already" in capsys.readouterr().err
    assert main(["verify", "schedules", "--n-trials", "2", "--seed", "7", "--json"]) == 0
    printed.write_text(capsys.readouterr().out)
    assert main(["verify", "schedules", "--append", str(path), "--reports", str(printed)]) == 0
    assert evidence.read(path)["totals"]["schedules"] == {"fake": 5}
    assert main(["verify", "schedules", "--reports", str(printed)]) == 2
    assert main(["verify", "single", "--append", str(path)]) == 2
    printed.write_text("")
    assert main(["verify", "schedules", "--append", str(path), "--reports", str(printed)]) == 2


def test_the_committed_evidence_is_sound() -> None:
    kept = json.loads(COMMITTED.read_text())
    assert kept["totals"]["failures"] == 0
    for model, least in (("fake", 100_000), ("tiny", 5_000)):
        assert kept["totals"]["schedules"][model] >= least
        assert sum(run["schedules"][model] for run in kept["runs"]) == kept["totals"]["schedules"][model]
    seeds = [seed for run in kept["runs"] for begin, end in run["seeds"] for seed in range(begin, end + 1)]
    assert len(seeds) == len(set(seeds)) == sum(kept["totals"]["schedules"].values())
