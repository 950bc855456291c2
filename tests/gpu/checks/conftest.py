"""Where the checks run: on CPU under Triton's interpreter, else on the GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(scope="session")
def dtypes() -> list[torch.dtype]:
    """Activation types to check: the interpreter's `tl.dot` multiplies bf16 as bit patterns (Triton 3.6)."""
    known = [torch.float32, torch.float16, torch.bfloat16]
    return known[:2] if INTERPRETED else known


def _fused(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """fma in float32 by float64: the product is exact, the sum is rounded to odd, so the last rounding is the
    only one that counts."""
    product, addend = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
    total = product + addend
    other = total - product
    lost = (product - (total - other)) + (addend - other)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (lost != 0) & (bits & 1 == 0)
    towards = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where(inexact, (bits + towards).view(np.float64), total).astype(np.float32)


@pytest.fixture(scope="session", autouse=True)
def fused_multiply_add() -> Iterator[None]:
    """Triton's interpreter rounds the product of `tl.fma`; with this, it gives a GPU's bits for float32."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    plain = builder.create_fma

    def create_fma(self: object, x: Any, y: Any, z: Any) -> Any:
        if x.data.dtype != np.float32:
            return plain(self, x, y, z)
        with np.errstate(all="ignore"):
            return interpreter.TensorHandle(_fused(x.data, y.data, z.data), x.dtype.scalar)

    builder.create_fma = create_fma
    yield
    builder.create_fma = plain
