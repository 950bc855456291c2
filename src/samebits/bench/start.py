"""`samebits bench start`: how long a server takes until it is ready, with empty caches and after.

Empty are the caches of kernels, proofs, digests and Python's bytecode, which every start may fill, whatever the
machine's settings say; the system's own of files are as they happen to be.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from samebits.bench.device_engine import gpu_facts, stage_seconds
from samebits.bench.facts import machine, write_result
from samebits.config import ModelConfig

CACHES = (
    "XDG_CACHE_HOME",
    "TRITON_CACHE_DIR",
    "NUMBA_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "PYTHONPYCACHEPREFIX",
)
"""variables that say where compiled kernels, proofs and bytecode are kept"""
NOTHING_KEPT = "PYTHONDONTWRITEBYTECODE"
"""variable that has every start compile every module, torch's among them: some two seconds"""
LOGGING = ("--log-level=debug", "--log-format=json")
"""flags of a server whose log says when each stage began"""


@dataclass(frozen=True)
class Started:
    """One start of a server."""

    begun: float
    """moment of its command line, in seconds of the clock"""
    seconds: float
    """until it was ready"""
    log: str
    """with LOGGING"""

    def stages(self) -> dict[str, float]:
        """Seconds of each stage, from its beginning to that of the next, and of what came before the first."""
        return stage_seconds(list(self._beginnings()), self.begun, self.begun + self.seconds)

    def _beginnings(self) -> Iterator[tuple[str, float]]:
        """What the log says of stages, `compiling kernels: 0 of 37`, and when."""
        last = ""
        for line in self.log.splitlines():
            try:
                entry = json.loads(line)
                stage, colon, news = entry["message"].rpartition(": ")
                moment = datetime.fromisoformat(entry["time"]).timestamp()
            except (ValueError, TypeError, KeyError):  # a line of somebody else
                continue
            if colon and entry.get("logger") == "samebits.server" and " of " in news and stage != last:
                last = stage
                yield stage, moment


def own_caches(environment: Mapping[str, str], folder: str) -> dict[str, str]:
    """The environment of a server that keeps all that it may keep below `folder`."""
    kept = {name: value for name, value in environment.items() if name != NOTHING_KEPT}
    return kept | {name: f"{folder}/{name.lower()}" for name in CACHES}


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
        environment = own_caches(os.environ, folder)
        for number in range(1 + repeats):
            started = start(environment)
            caches = "empty" if number == 0 else "filled"
            rows.append({"caches": caches, "seconds": round(started.seconds, 2), "stages": started.stages()})
            say(f"{caches} caches: ready after {started.seconds:.1f} s ({stages_of(rows[-1])})")
            write_result(output, result)
    if torch.cuda.is_available():  # last, for to ask the card is to take some of its memory
        result |= gpu_facts()
        write_result(output, result)
    return result


def stages_of(row: dict[str, Any]) -> str:
    """The stages that last, in one line."""
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["stages"].items() if seconds >= 0.1)


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """For people."""
    rows: list[tuple[str, ...]] = [("caches", "seconds", "of these")]
    for row in result["starts"]:
        rows.append((row["caches"], f"{row['seconds']:.1f}", stages_of(row)))
    return rows
