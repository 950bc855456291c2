"""The clauses once more, in numpy, step by step, with an exact fused multiply-add; and their mutants.

Nothing here shares code with the kernels. Each function takes the choices that a clause fixes (order, lanes,
blocks) as arguments, so that a test can also ask for a wrong choice and see that it is noticed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

F32 = np.float32


def fma32(a, b, c) -> np.ndarray:
    """float32 a * b + c rounded once.

    The product of two float32 is exact in float64. Its sum with c is rounded to odd in float64 (53 bits, more
    than 2 * 24 + 1), from where the rounding to float32 is that of the exact value.
    """
    with np.errstate(all="ignore"):
        product = np.asarray(a, F32).astype(np.float64) * np.asarray(b, F32).astype(np.float64)
        addend = np.asarray(c, F32).astype(np.float64)
        total = product + addend
        back = total - product
        error = (product - (total - back)) + (addend - back)
        inexact = np.isfinite(total) & np.isfinite(error) & (error != 0)
        even = (total.view(np.int64) & 1) == 0
        toward = np.where(error > 0, np.inf, -np.inf)
        total = np.where(inexact & even, np.nextafter(total, toward), total)
        return total.astype(F32)


def multiply_add(a, b, c) -> np.ndarray:
    """The unfused mutant: the product is rounded first."""
    return np.asarray(a, F32) * np.asarray(b, F32) + np.asarray(c, F32)


def chain(x: np.ndarray, weight: np.ndarray, order: Iterable[int] | None = None, atom=fma32) -> np.ndarray:
    """x [rows, k], weight [columns, k] -> [rows, columns]: one chain from +0 over `order` (default ascending)."""
    total = np.zeros((x.shape[0], weight.shape[0]), F32)
    for k in range(x.shape[1]) if order is None else order:
        total = atom(x[:, k, None], weight[None, :, k], total)
    return total


def leaf_sum(x: np.ndarray, weight: np.ndarray, leaves: int) -> np.ndarray:
    """The split mutant: `leaves` equal chains, added in ascending order."""
    edges = [round(x.shape[1] * leaf / leaves) for leaf in range(leaves + 1)]
    parts = [chain(x, weight, range(*edge)) for edge in itertools.pairwise(edges)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def fold_lanes(lanes: np.ndarray) -> np.ndarray:
    """[..., lanes] -> [...]: lane j += lane j + width / 2 until one is left."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, lanes: int = 16) -> np.ndarray:
    """x [..., hidden], weight [hidden]."""
    total = np.zeros((*x.shape[:-1], lanes), F32)
    for i in range(x.shape[-1]):
        total[..., i % lanes] = fma32(x[..., i], x[..., i], total[..., i % lanes])
    mean = fold_lanes(total) / F32(x.shape[-1])
    scale = F32(1.0) / np.sqrt(mean + F32(eps))
    return weight * (x * scale[..., None])


def rotate(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """x [rows, heads, head_dim], table [rows, 2, half] of the rows' positions."""
    half = table.shape[-1]
    cosine, sine = table[:, None, 0], table[:, None, 1]
    low, high = x[..., :half], x[..., half : 2 * half]
    return np.concatenate(
        [low * cosine - high * sine, high * cosine + low * sine, x[..., 2 * half :]], axis=-1
    )


EXP_POLYNOMIAL = (0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.00836874540621519,
                  0.0013814540579915047)  # fmt: skip


def exp32(x) -> np.ndarray:
    """The exp of `contract.md`, from its text."""
    x = np.minimum(np.maximum(np.asarray(x, F32), F32(-104)), F32(89))
    count = fma32(x, F32(1.4426950408889634), F32(12582912)) - F32(12582912)
    r = fma32(count, F32(-1.42860677e-06), fma32(count, F32(-0.693145751953125), x))
    value = np.full_like(r, F32(EXP_POLYNOMIAL[-1]))
    for coefficient in EXP_POLYNOMIAL[-2::-1]:
        value = fma32(value, r, F32(coefficient))
    value = fma32(r * r, value, r) + F32(1)
    half = np.floor(np.nan_to_num(count) / 2).astype(np.int32)
    rest = np.nan_to_num(count).astype(np.int32) - half
    with np.errstate(over="ignore", under="ignore"):
        return value * np.ldexp(F32(1), half) * np.ldexp(F32(1), rest)


def silu_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate / (F32(1) + exp32(-gate)) * up


def log_sum_exp(x: np.ndarray, log32, block: int = 1024, lanes: int = 16) -> np.ndarray:
    """x [rows, vocabulary]. `log32` is the kernels' own logarithm (its accuracy has a test of its own)."""
    maximum = np.full(x.shape[0], -np.inf, F32)
    total = np.zeros(x.shape[0], F32)
    for start in range(0, x.shape[1], block):
        part = x[:, start : start + block]
        best = part.max(axis=1)
        base = np.where(best == -np.inf, F32(0), best)
        sums = np.zeros((x.shape[0], lanes), F32)
        for i in range(part.shape[1]):
            sums[:, i % lanes] = sums[:, i % lanes] + exp32(part[:, i] - base)
        joint = np.maximum(best, maximum)
        base = np.where(joint == -np.inf, F32(0), joint)
        total = fma32(total, exp32(maximum - base), fold_lanes(sums) * exp32(best - base))
        maximum = joint
    return maximum + log32(total)


def attention_row(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    scale: float,
    split: int = 256,
    block: int = 64,
    lanes: int = 16,
    first_split: int = 0,
    descending: bool = False,
) -> np.ndarray:
    """One row: query [heads, dim], keys and values [context, heads, dim] (heads already repeated) -> [heads, dim].

    `first_split` shifts the borders of splits, `descending` folds them backwards: both are mutants.
    """
    context = keys.shape[0]
    scaled = query * F32(scale)
    scores = np.zeros(keys.shape[:2], F32)
    for d in range(query.shape[1]):
        scores = fma32(scaled[None, :, d], keys[:, :, d], scores)
    edges = sorted({0, context, *range(first_split % split, context, split)})
    partials = [
        _split(scores[start:end], values[start:end], block, lanes) for start, end in itertools.pairwise(edges)
    ]
    maximum = np.full(query.shape[0], -np.inf, F32)
    total = np.zeros(query.shape[0], F32)
    output = np.zeros(query.shape, F32)
    for best, row_sum, accumulator in reversed(partials) if descending else partials:
        joint = np.maximum(best, maximum)
        keep, take = exp32(maximum - joint), exp32(best - joint)
        total = fma32(total, keep, row_sum * take)
        output = fma32(output, keep[:, None], accumulator * take[:, None])
        maximum = joint
    return output / total[:, None] + F32(0)


def _split(
    scores: np.ndarray, values: np.ndarray, block: int, lanes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """scores [keys, heads], values [keys, heads, dim] -> maximum, row sum [heads], accumulator [heads, dim]."""
    heads = scores.shape[1]
    maximum = np.full(heads, -np.inf, F32)
    sums = np.zeros((heads, lanes), F32)
    accumulator = np.zeros(values.shape[1:], F32)
    for start in range(0, scores.shape[0], block):
        part = scores[start : start + block]
        best = np.maximum(part.max(axis=0), maximum)
        rescale = exp32(maximum - best)
        weights = exp32(part - best)
        for i in range(weights.shape[0]):
            if i < lanes:
                sums[:, i] = fma32(sums[:, i], rescale, weights[i])
            else:
                sums[:, i % lanes] = sums[:, i % lanes] + weights[i]
        for i in range(weights.shape[0], lanes):
            sums[:, i] = sums[:, i] * rescale
        accumulator = accumulator * rescale[:, None]
        for i in range(weights.shape[0]):
            accumulator = fma32(weights[i][:, None], values[start + i], accumulator)
        maximum = best
    return maximum, fold_lanes(sums), accumulator
