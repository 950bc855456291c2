"""A GEMM's shape, and the adversarial inputs on which every wrong order of it shows.

All data are made on the device by integer arithmetic alone, so they are the same on every device and version.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.numerics.gpu.launch import TYPE_NAMES
from samebits.numerics.gpu.prover import Output, Tensors

ATOM = 16
"""Depth of a tensor-core product."""

CHUNK = 1 << 24
"""Elements that are made at once, which bounds the memory for intermediates."""


@dataclass(frozen=True)
class GemmProblem:
    """out[m, n] = sum over k of x[m, k] weight[n, k], plus bias[n]; inputs (x, weight) or (x, weight, bias)."""

    columns: int
    depth: int
    act: torch.dtype
    """of x, weight and bias"""
    out: torch.dtype
    """act, or float32 for logits and partial sums"""
    bias: bool = False

    @property
    def key(self) -> str:
        bias = " with bias" if self.bias else ""
        return f"{self.columns}x{self.depth} {TYPE_NAMES[self.act]} to {TYPE_NAMES[self.out]}{bias}"

    def output(self, rows: int) -> tuple[Output, ...]:
        return (Output((rows, self.columns), self.out),)

    def operations(self, rows: int) -> int:
        return 2 * rows * self.columns * self.depth

    def bytes(self, rows: int) -> int:
        """Least traffic: weights and activations read once, results written once."""
        read = (self.columns * self.depth + rows * self.depth + self.bias * self.columns) * self.act.itemsize
        return read + rows * self.columns * self.out.itemsize


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch wants."""
    return value - (1 << 64) if value >> 63 else value


def _shifted(word: Tensor, count: int) -> Tensor:
    """Logical right shift of int64."""
    return (word >> count) & ((1 << (64 - count)) - 1)


def hashed_words(seed: int, start: int, count: int, device: torch.device) -> Tensor:
    """int64 [count]: elements `start` on of the SplitMix64 stream of a seed."""
    first = _signed((seed * 0x632BE59BD9B4E019 + start + 1) & 0xFFFFFFFFFFFFFFFF)
    word = torch.arange(count, dtype=torch.int64, device=device) + first
    word = word * _signed(0x9E3779B97F4A7C15)
    word = (word ^ _shifted(word, 30)) * _signed(0xBF58476D1CE4E5B9)
    word = (word ^ _shifted(word, 27)) * _signed(0x94D049BB133111EB)
    return word ^ _shifted(word, 31)


def floats_of(words: Tensor, exponents: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Random sign and mantissa, binary exponents from `exponents` (both ends included), as `dtype`."""
    low, high = exponents
    sign = _shifted(words, 63) << 31
    exponent = _shifted(words, 32) % (high - low + 1) + (127 + low)
    pattern = sign | (exponent << 23) | (words & 0x7FFFFF)
    return pattern.to(torch.int32).view(torch.float32).to(dtype)


def powers_of_two(exponents: Tensor) -> Tensor:
    """float32 of int64 exponents from -126 to 127."""
    return ((exponents + 127) << 23).to(torch.int32).view(torch.float32)


def hashed_matrix(
    seed: int, rows: int, width: int, exponents: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """dtype [rows, width] of hashed floats."""
    out = torch.empty(rows * width, dtype=dtype, device=device)
    for start in range(0, rows * width, CHUNK):
        count = min(CHUNK, rows * width - start)
        out[start : start + count] = floats_of(hashed_words(seed, start, count, device), exponents, dtype)
    return out.view(rows, width)


def flipped(seed: int, values: Tensor) -> Tensor:
    """`values` [rows, width] with the lowest bit of a random half of them turned over."""
    view = values.view(torch.int16 if values.element_size() == 2 else torch.int32)
    rows = max(1, CHUNK // values.shape[1])
    for start in range(0, values.shape[0], rows):
        part = view[start : start + rows]
        words = hashed_words(seed, start * values.shape[1], part.numel(), values.device)
        part ^= (words & 1).to(view.dtype).view(part.shape)
    return values


def cancelling_weight(seed: int, problem: GemmProblem, device: torch.device) -> Tensor:
    """[columns, depth]: each row repeats 16 values, atom after atom."""
    base = hashed_matrix(seed, problem.columns, ATOM, (-2, 2), problem.act, device)
    atoms = -(-problem.depth // ATOM)
    return base.repeat(1, atoms)[:, : problem.depth].contiguous()


def cancelling_rows(seed: int, rows: int, problem: GemmProblem, device: torch.device) -> Tensor:
    """[rows, depth]: in each row the atoms are paired at random; partners have opposite signs and one size.

    With `cancelling_weight`, partners cancel, so that what is left of the sum is its roundings and nothing else: each
    depends on everything that was added before. Every pair of atoms meets in some row; pairs lie up to 2**12 (2**14
    in fp16) apart.
    """
    atoms = -(-problem.depth // ATOM)
    reach = 7 if problem.act is torch.float16 else 6
    base = hashed_matrix(seed, rows, ATOM, (-1, 1), problem.act, device)
    order = hashed_words(seed + 1, 0, rows * atoms, device).view(rows, atoms).argsort(dim=1, stable=True)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(atoms, device=device).expand(rows, atoms).contiguous()
    )
    exponent = _shifted(hashed_words(seed + 2, 0, rows * atoms, device), 1) % (2 * reach + 1) - reach
    power = powers_of_two(exponent.view(rows, atoms).gather(1, place // 2 * 2))
    factor = torch.where(place % 2 == 0, power, -power).to(problem.act)
    rows_of = (base[:, None, :] * factor[:, :, None]).view(rows, atoms * ATOM)[:, : problem.depth]
    return rows_of.contiguous()


def spread_rows(seed: int, rows: int, problem: GemmProblem, device: torch.device) -> Tensor:
    """[rows, depth] with exponents over a wide range; every seventh row so small that its results are subnormal."""
    if problem.act is torch.float16:
        return hashed_matrix(seed, rows, problem.depth, (-24, 5), problem.act, device)
    x = hashed_matrix(seed, rows, problem.depth, (-12, 12), problem.act, device)
    small = hashed_matrix(seed + 1, -(-rows // 7), problem.depth, (-126, -116), problem.act, device)
    x[3::7] = small[: x[3::7].shape[0]]
    # Subnormal inputs, too: a power of two below the smallest normal number is exact.
    x[5::7, ::5] = small[: x[5::7].shape[0], ::5] * 2.0**-4
    return x


def poisoned_rows(seed: int, rows: int, problem: GemmProblem, device: torch.device) -> Tensor:
    """[rows, depth]: of four rows one is ordinary; the others hold NaN, infinity, and the largest finite value."""
    x = hashed_matrix(seed, rows, problem.depth, (-3, 3), problem.act, device)
    k = _shifted(hashed_words(seed + 1, 0, rows, device), 1) % problem.depth
    for phase, value in ((1, float("nan")), (2, float("inf")), (3, torch.finfo(problem.act).max)):
        chosen = torch.arange(rows, device=device)[phase::4]
        x[chosen, k[chosen]] = value
    return x


def proof_inputs(problem: GemmProblem, rows: int, device: torch.device) -> dict[str, Tensors]:
    """Inputs by case name. A smaller bucket's case is their first rows."""
    reach = (-6, 3) if problem.act is torch.float16 else (-12, 12)
    cases = {
        "cancelling atoms": (
            cancelling_rows(100, rows, problem, device),
            cancelling_weight(110, problem, device),
        ),
        "nearly cancelling atoms": (
            flipped(180, cancelling_rows(170, rows, problem, device)),
            flipped(190, cancelling_weight(195, problem, device)),
        ),
        "spread exponents": (
            spread_rows(120, rows, problem, device),
            hashed_matrix(130, problem.columns, problem.depth, reach, problem.act, device),
        ),
        "poisoned neighbours": (
            poisoned_rows(140, rows, problem, device),
            hashed_matrix(150, problem.columns, problem.depth, (-3, 3), problem.act, device),
        ),
    }
    if not problem.bias:
        return dict(cases)
    bias = hashed_matrix(160, 1, problem.columns, (-3, 3), problem.act, device)[0]
    return {name: (*inputs, bias) for name, inputs in cases.items()}
