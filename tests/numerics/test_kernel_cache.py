"""Kernels that different processes compiled give the right products when one process loads them all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samebits.numerics.cpu.environment import machine

PROGRAM = """
import sys, torch
from samebits.numerics.cpu.operators import CpuOperators

operators = CpuOperators(threads=1)
for name in sys.argv[1:]:
    dtype = getattr(torch, name)
    weight = torch.arange(-40, 40, dtype=torch.float32).repeat(16).reshape(20, 64).to(dtype)
    packed = operators.pack_linear(weight)
    for rows in (1, 2, 3, 7):
        x = torch.arange(rows * 64, dtype=torch.float32).reshape(rows, 64) % 5 - 2
        assert torch.equal(operators.linear(x, packed), x @ weight.float().T), (name, rows)
"""


def run(cache: Path, *dtypes: str, **settings: str) -> str:
    """What the program wrote to standard error."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **settings}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *dtypes], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def test_kernels_of_several_processes_meet(tmp_path: Path) -> None:
    """The values are small integers, so every order of the sum is exact and a wrong helper shows."""
    run(tmp_path, "bfloat16")
    run(tmp_path, "float32")
    run(tmp_path, "bfloat16", "float32")


@pytest.mark.parametrize("size", [0, 60])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_half_a_file_is_compiled_again(tmp_path: Path, ending: str, size: int) -> None:
    run(tmp_path, "bfloat16")
    kept = sorted(tmp_path.rglob(f"*.{ending}"))
    sizes = [path.stat().st_size for path in kept]
    assert kept and min(sizes) > size
    for path in kept:
        os.truncate(path, size)
    run(tmp_path, "bfloat16")
    assert [path.stat().st_size for path in kept] == sizes


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    assert run(blocked, "bfloat16").count("compiled kernels are not kept") == 1
    assert "not kept" not in run(tmp_path / "new", "bfloat16")


@pytest.mark.skipif(machine() != "x86_64", reason="names processors of x86-64")
def test_processors_of_several_kinds_share_no_file(tmp_path: Path) -> None:
    """An index that two kinds write at the same time may name one's code for the other."""
    run(tmp_path, "bfloat16")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.nb?")}
    run(tmp_path, "bfloat16", NUMBA_CPU_NAME="x86-64-v3", NUMBA_CPU_FEATURES="")
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert len(list(tmp_path.rglob("*.nb?"))) == 2 * len(kept)
