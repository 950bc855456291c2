"""Where the checks run: on CPU under Triton's interpreter, else on the GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
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


def _chain(a: np.ndarray, b: np.ndarray, start: np.ndarray) -> np.ndarray:
    """A matrix product as a chain of atoms 16 deep, ascending: no element depends on the tile's shape."""
    total = start.astype(np.float32)
    for first in range(0, a.shape[1], 16):
        atom = total.astype(np.float64)
        for k in range(first, first + 16):
            atom += a[:, k, None].astype(np.float64) * b[None, k, :].astype(np.float64)
        total = atom.astype(np.float32)
    return total


@pytest.fixture(scope="session", autouse=True)
def atoms_of_a_gpu() -> Iterator[None]:
    """Give Triton's interpreter a GPU's atoms: it rounds the product inside `tl.fma`, and its `tl.dot` is a BLAS
    call whose order follows the tile."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    plain = builder.create_fma, builder.create_dot

    def create_fma(self: object, x: Any, y: Any, z: Any) -> Any:
        if x.data.dtype != np.float32:
            return plain[0](self, x, y, z)
        with np.errstate(all="ignore"):
            return interpreter.TensorHandle(_fused(x.data, y.data, z.data), x.dtype.scalar)

    def create_dot(self: object, a: Any, b: Any, d: Any, precision: Any, imprecise: int) -> Any:
        with np.errstate(all="ignore"):
            return interpreter.TensorHandle(_chain(a.data, b.data, d.data), d.dtype.scalar)

    builder.create_fma, builder.create_dot = create_fma, create_dot
    yield
    builder.create_fma, builder.create_dot = plain


@pytest.fixture(scope="session", autouse=True)
def language_is_patched_once_a_launch() -> Iterator[None]:
    """The interpreter patches the modules of Triton's language that a function sees at every call of one, which takes
    a quarter of the time: once in a launch is enough."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    patched: set[frozenset[str]] = set()

    @cache
    def seen_by(function: Any) -> frozenset[str]:
        modules = (interpreter.tl, interpreter.tl.core)
        return frozenset(
            one.__name__ for one in function.__globals__.values() if any(one is module for module in modules)
        )

    def launch(executor: Any, *given: Any, **named: Any) -> None:
        patched.clear()
        patched.add(seen_by(executor.fn))
        plain[0](executor, *given, **named)

    def call(function: Any, *given: Any, **named: Any) -> Any:
        if (seen := seen_by(function.fn)) not in patched:
            patched.add(seen)
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*given, **named)

    executor, function = interpreter.GridExecutor, interpreter.InterpretedFunction
    plain = executor.__call__, function.__call__
    executor.__call__, function.__call__ = launch, call
    yield
    executor.__call__, function.__call__ = plain
