"""The checks of `checks/`, in processes of their own: by Triton's interpreter, and on the GPU.

The interpreter has to be asked for before Triton is imported, so it cannot share a process with the tests that
compile kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).parent / "checks"
FILES = sorted(path.name for path in CHECKS.glob("check_*.py"))
ROOT = Path(__file__).parents[2]
SECONDS = 1200
"""The interpreter is slow, and so may the machine be."""


def run_checks(*files: str, **environment: str) -> None:
    paths = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "numerics")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        *(str(CHECKS / name) for name in files),
    ]
    done = subprocess.run(
        [*command, "-o", "python_files=check_*.py", "-o", "python_functions=check_*"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS - 50,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.timeout(SECONDS)
def test_logic_under_the_interpreter() -> None:
    """All files in one process, for a file of its own would spend most of its time on imports."""
    pytest.importorskip("triton")
    run_checks(*FILES, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("file", FILES)
def test_on_the_device(file: str) -> None:
    run_checks(file, TRITON_INTERPRET="0")
