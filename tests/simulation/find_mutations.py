"""After how many schedules does the simulator find each planted bug? Writes the answer as JSON.

python tests/simulation/find_mutations.py results/simulator-mutations.json
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from mutations import MUTATIONS

from samebits.bench.facts import machine
from samebits.verify.simulation.schedules import Trial, model_of, run_schedules, run_trial

MOST_SCHEDULES = 1000


@dataclass(frozen=True)
class Found:
    """A planted bug and the schedule that gave it away."""

    schedules: int
    trial: Trial


def find(name: str, most: int = MOST_SCHEDULES) -> Found | None:
    """Plant a bug and run schedules of the fake model until one fails; None: none did."""
    seeds = islice((seed for seed in count() if model_of(seed) == "fake"), most)
    with MUTATIONS[name]():
        for number, seed in enumerate(seeds, start=1):
            trial = run_trial(seed)
            if trial.counts is None:
                return Found(number, trial)
    return None


def main(output: Path) -> None:
    logging.getLogger("samebits").setLevel(logging.CRITICAL)  # of injected faults there are many
    run_schedules(1, 0, processes=1)
    rows = []
    for name, mutation in MUTATIONS.items():
        found = find(name)
        print(f"{name:30}", f"{found.schedules:5}  {found.trial.message[:120]}" if found else "not found")
        rows.append(
            {
                "mutation": name,
                "what": " ".join((mutation.__doc__ or "").split()),
                "schedules": found.schedules if found else None,
                "seed": found.trial.seed if found else None,
                "how": found.trial.message if found else None,
            }
        )
    command = f"python tests/simulation/find_mutations.py {output}"
    facts = {**machine(), "command": command}
    output.write_text(json.dumps({"machine": facts, "mutations": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
