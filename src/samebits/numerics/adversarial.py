"""Inputs on which every wrong order shows: made by integer arithmetic alone, the same on every machine and version.

Random normal data hides an order: two halves of K summed apart give the same rounded result surprisingly often.
Here the terms cancel in pairs, exponents are spread wide, and some values are subnormal, so that each rounding
depends on what was added before.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}


def hashed_words(seed: int, count: int) -> np.ndarray:
    """uint64 [count]: the SplitMix64 stream of a seed."""
    start = np.uint64((seed * 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
    index = np.arange(1, count + 1, dtype=np.uint64) + start
    word = index * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def hashed_floats(
    seed: int, shape: Sequence[int], exponents: tuple[int, int], mantissa_bits: int = 23
) -> np.ndarray:
    """float32 of either sign, binary exponents from `exponents` (both ends included), full mantissas."""
    words = hashed_words(seed, prod(shape))
    low, high = exponents
    sign = (words >> np.uint64(63)) << np.uint64(31)
    exponent = (words >> np.uint64(32)) % np.uint64(high - low + 1) + np.uint64(127 + low)
    mantissa = (words & np.uint64(0x7FFFFF)) >> np.uint64(23 - mantissa_bits) << np.uint64(23 - mantissa_bits)
    bits = (sign | (exponent << np.uint64(23)) | mantissa).astype(np.uint32)
    return bits.view(np.float32).reshape(shape)


def subnormal_floats(seed: int, shape: Sequence[int]) -> np.ndarray:
    """Subnormal float32 of either sign, of every size. Made of bits: a product is zero under flush-to-zero."""
    words = hashed_words(seed, prod(shape))
    mantissa = (words & np.uint64(0x7FFFFF)) >> ((words >> np.uint64(32)) % np.uint64(20)) | np.uint64(1)
    sign = (words >> np.uint64(63)) << np.uint64(31)
    return (sign | mantissa).astype(np.uint32).view(np.float32).reshape(shape)


def cancelling_product(
    seed: int, rows: int, columns: int, depth: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """(x float32 [rows, depth], weight dtype [columns, depth]) whose products nearly cancel in pairs of k.

    Neighbours k, k + 1 have weights of opposite sign and equal size, and inputs that differ in their low bits;
    pairs lie up to 2**10 apart. One pair in 61 holds subnormal inputs.
    """
    pairs = (depth + 1) // 2
    half = hashed_floats(seed, (rows, pairs), (-5, 5))
    near = (half.view(np.uint32) ^ (hashed_words(seed + 1, rows * pairs) & np.uint64(0xFFF)).astype(np.uint32)
            .reshape(rows, pairs)).view(np.float32)  # fmt: skip
    x = np.stack([half, near], axis=2).reshape(rows, 2 * pairs)[:, :depth].copy()
    x[:, 60::122] = subnormal_floats(seed + 2, x[:, 60::122].shape)
    weight = hashed_floats(seed + 3, (columns, pairs), (-5, 5), MANTISSA_BITS[dtype])
    weight = np.stack([weight, -weight], axis=2).reshape(columns, 2 * pairs)[:, :depth].copy()
    return torch.from_numpy(x), torch.from_numpy(weight).to(dtype)


def wide_rows(seed: int, rows: int, width: int, spread: int = 8) -> Tensor:
    """float32 [rows, width] of either sign with binary exponents from -spread to spread."""
    return torch.from_numpy(hashed_floats(seed, (rows, width), (-spread, spread)).copy())


def narrow_rows(seed: int, rows: int, width: int) -> Tensor:
    """float32 [rows, width] of either sign and nearly one size: no term of a sum hides another one's rounding."""
    return torch.from_numpy(hashed_floats(seed, (rows, width), (-1, 0)).copy())


def logit_rows(seed: int, rows: int, vocabulary: int) -> Tensor:
    """float32 [rows, vocabulary] in which one token in 200 or so is likely and the others are 16 below.

    So a sum of exponentials lies near 1, and its logarithm near 0, where every rounding of its terms shows.
    """
    near = hashed_floats(seed, (rows, vocabulary), (-4, -2))
    likely = hashed_words(seed + 1, rows * vocabulary).reshape(rows, vocabulary) % np.uint64(199) == 0
    return torch.from_numpy(np.where(likely, near, near - np.float32(16.0)))


def pair_rows(seed: int, rows: int, width: int) -> Tensor:
    """float32 [rows, width]: each row has one element near 0, one or two 1 to 2 below, and the others 100 below.

    The logarithm of its sum of exponentials lies between 0.1 and 0.4, where none of its roundings is hidden.
    """
    found = torch.full((rows, width), -100.0)
    found[:, 0] = torch.from_numpy(hashed_floats(seed, (rows,), (-6, -4)).copy())
    found[:, 1:3] = -torch.from_numpy(np.abs(hashed_floats(seed + 1, (rows, 2), (0, 0))))
    found[::2, 2] = -100.0
    return found
