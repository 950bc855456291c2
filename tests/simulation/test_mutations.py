"""The simulator finds every bug that is planted, and none where there is none."""

from __future__ import annotations

import pytest
from find_mutations import find
from mutations import MUTATIONS

from samebits.verify.simulation.schedules import run_trial

MOST_SCHEDULES = 400


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_bug_is_found(name: str) -> None:
    found = find(name, MOST_SCHEDULES)
    assert found is not None, f"{MOST_SCHEDULES} schedules do not show it"
    after = run_trial(found.trial.seed)
    assert after.counts is not None, f"seed {found.trial.seed} fails without the bug: {after.message}"


def test_there_are_at_least_ten() -> None:
    assert len(MUTATIONS) >= 10
