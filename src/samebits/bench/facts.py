"""What a measurement must say beside its figures, and the plain rates of the machine that bound them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from samebits import __version__
from samebits.errors import ConfigError

LIBRARIES = ("torch", "triton", "numpy", "numba", "llvmlite", "transformers", "tokenizers")
COPY_BYTES = 256 << 20
MATRIX = 1536


def machine() -> dict[str, Any]:
    """Processor, system, versions, commit and command line."""
    return {
        "device": processor_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"samebits": __version__}
        | {name: version for name in LIBRARIES if (version := _version(name))},
        "commit": commit(),
        "command": shlex.join(["samebits", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor_name() -> str:
    """The processor's own name where the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the sources, `+changes` where they are changed; what SAMEBITS_COMMIT says of a tree that was copied
    without its history; `unknown` where nobody knows, as of an installed package, even where it lies in a folder of
    somebody's repository."""
    if copied := os.environ.get("SAMEBITS_COMMIT"):
        return copied

    source = Path(__file__)

    def git(*arguments: str) -> str:
        folder = source.parent
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def copy_rate(repeats: int = 5) -> float:
    """Bytes a second that a copy reads (it writes as many). Best of `repeats`, on torch's threads."""
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return COPY_BYTES / best_seconds(lambda: target.copy_(source), repeats)


def multiply_rate(repeats: int = 5) -> float:
    """Floating-point operations a second of a square float32 `torch.mm`. Best of `repeats`."""
    left, right = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    return 2 * MATRIX**3 / best_seconds(lambda: torch.mm(left, right), repeats)


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """The shortest of `repeats` runs after one that is not counted."""
    work()
    return min(seconds_of(work) for _ in range(repeats))


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON. Raises `ConfigError` where the place cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
