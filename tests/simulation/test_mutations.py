"""The simulator finds every bug that is planted, and none where there is none.

After how many schedules it does is told by `find_mutations.py`; here the schedule that it names is run again.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mutations import MUTATIONS

from samebits.verify.simulation.schedules import run_trial

RESULT = Path(__file__).parents[2] / "results" / "simulator-mutations.json"
FOUND = {row["mutation"]: row for row in json.loads(RESULT.read_text())["mutations"]}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_bug_is_found(name: str) -> None:
    seed = FOUND[name]["seed"]
    assert seed is not None, "no schedule shows it"
    with MUTATIONS[name]():
        trial = run_trial(seed)
    assert trial.counts is None, f"seed {seed} shows it no more: run find_mutations.py again"
    after = run_trial(seed)
    assert after.counts is not None, f"seed {seed} fails without the bug: {after.message}"


def test_there_are_at_least_ten() -> None:
    assert len(MUTATIONS) >= 10 and set(FOUND) == set(MUTATIONS)


def test_the_documented_table_is_the_result() -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    rows = [f"| {row['what'].rstrip('.')} | {row['schedules']} |" for row in FOUND.values()]
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == rows
