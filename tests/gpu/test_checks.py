"""The checks of `checks/`, each file in a process of its own: by Triton's interpreter, and on the GPU.

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


def run_checks(file: str, **environment: str) -> None:
    paths = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "numerics")]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(CHECKS / file)]
    done = subprocess.run(
        [*command, "-o", "python_files=check_*.py", "-o", "python_functions=check_*"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("file", FILES)
def test_logic_under_the_interpreter(file: str) -> None:
    pytest.importorskip("triton")
    run_checks(file, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("file", FILES)
def test_on_the_device(file: str) -> None:
    run_checks(file, TRITON_INTERPRET="0")
