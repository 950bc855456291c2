"""`samebits bench start`: how long a server takes until it is ready, with empty caches and after.

Empty are the caches of kernels, proofs and digests; the system's own of files are as they happen to be.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from samebits.bench.device_engine import gpu_facts
from samebits.bench.facts import machine, write_result
from samebits.config import ModelConfig

CACHES = ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH")
"""variables that say where compiled kernels and proofs are kept"""
STAGE = re.compile(r": ([^:\n]+): done in ([0-9.]+) s")


@dataclass(frozen=True)
class Started:
    """One start of a server."""

    seconds: float
    """from its command line until it was ready"""
    log: str

    def stages(self) -> dict[str, float]:
        """Seconds of each stage that lasted long enough for the log to name it."""
        return {name: float(seconds) for name, seconds in STAGE.findall(self.log)}


def run(
    start: Callable[[dict[str, str]], Started],
    model: ModelConfig,
    repeats: int,
    output: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Start once with empty caches and `repeats` times with what that left; `output` is written anew after each.
    `start` is given the environment of the server."""
    rows: list[dict[str, Any]] = []
    result = {"benchmark": "start", **machine(), "model": model.model, "starts": rows}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {name: f"{folder}/{name.lower()}" for name in CACHES}
        for number in range(1 + repeats):
            started = start(environment)
            caches = "empty" if number == 0 else "filled"
            rows.append({"caches": caches, "seconds": round(started.seconds, 2), "stages": started.stages()})
            say(f"{caches} caches: ready after {started.seconds:.1f} s")
            write_result(output, result)
    if torch.cuda.is_available():  # last, for to ask the card is to take some of its memory
        result |= gpu_facts()
        write_result(output, result)
    return result


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """For people."""
    rows: list[tuple[str, ...]] = [("caches", "seconds", "stages of more than two seconds")]
    for row in result["starts"]:
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["stages"].items())
        rows.append((row["caches"], f"{row['seconds']:.1f}", stages or "none"))
    return rows
