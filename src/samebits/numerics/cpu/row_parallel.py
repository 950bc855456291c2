"""Row-parallel products on CPU: K is cut over ranks, and under `tp-invariant` into leaves; here parts are joined."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.cpu.gemm import CpuLinear, pack_linear
from samebits.numerics.cpu.kernel import Kernel, inlined
from samebits.numerics.cpu.lanes import LANES, load, load_int64, load_masked, store, store_masked

ZERO = np.float32(0.0)


@dataclass(frozen=True)
class RowParallelLinear:
    """The part of a weight [out, in] that one rank holds: its share of K, as leaves in ascending order. The bias
    belongs to the joined sum."""

    leaves: tuple[CpuLinear, ...]
    bias: Tensor | None
    """float32 [out]"""
    in_features: int
    """of this rank"""
    out_features: int


def pack_row_parallel(weight: Tensor, bias: Tensor | None, leaves: int) -> RowParallelLinear:
    """Cut a rank's weight [out, in of this rank] along K into equal leaves and pack each.

    Raises `NumericsError` when K does not divide.
    """
    out_features, in_features = weight.shape
    if in_features % leaves:
        raise NumericsError(
            f"a row-parallel weight of {in_features} input features on this rank cannot be cut into {leaves} leaves; "
            "use --numerics exact, or another tensor-parallel degree"
        )
    width = in_features // leaves
    parts = tuple(
        pack_linear(weight[:, start : start + width], None) for start in range(0, in_features, width)
    )
    wide_bias = None if bias is None else bias.to(torch.float32).contiguous()
    return RowParallelLinear(parts, wide_bias, in_features, out_features)


def leaves_of_rank(size: int) -> int:
    """Leaves of K that one of `size` ranks holds. Raises `NumericsError` where they cannot be shared equally."""
    if CONTRACT.leaves % size:
        raise NumericsError(
            f"numerics profile tp-invariant cuts K into {CONTRACT.leaves} leaves, which {size} ranks cannot share "
            "equally; use a tensor-parallel degree of 1, 2, 4 or 8"
        )
    return CONTRACT.leaves // size


@inlined
def part(parts, stride, number, i, lanes):
    """Elements i .. i + lanes - 1 of a part; lanes beyond are zero."""
    source = parts + number * stride
    if lanes == LANES:
        return load(source, i)
    return load_masked(source, i, lanes, ZERO)


@inlined
def ascending(parts, stride, count, i, lanes):
    """((p0 + p1) + p2) + ..."""
    total = part(parts, stride, 0, i, lanes)
    for number in range(1, count):
        total = total + part(parts, stride, number, i, lanes)
    return total


@inlined
def pair(parts, stride, first, i, lanes):
    return part(parts, stride, first, i, lanes) + part(parts, stride, first + 1, i, lanes)


@inlined
def quad(parts, stride, first, i, lanes):
    return pair(parts, stride, first, i, lanes) + pair(parts, stride, first + 2, i, lanes)


@inlined
def balanced(parts, stride, count, i, lanes):
    """Neighbours in pairs, then pairs of pairs; `count` is 1, 2, 4 or 8."""
    if count == 1:
        return part(parts, stride, 0, i, lanes)
    if count == 2:
        return pair(parts, stride, 0, i, lanes)
    if count == 4:
        return quad(parts, stride, 0, i, lanes)
    return quad(parts, stride, 0, i, lanes) + quad(parts, stride, 4, i, lanes)


def join_task(arguments, index):
    """Arguments: parts [count, rows, columns], y [rows, columns], bias [columns] or 0, count, rows, columns,
    whether to join as a balanced tree, rows of a task."""
    parts = load_int64(arguments, 0)
    y = load_int64(arguments, 1)
    bias = load_int64(arguments, 2)
    count = load_int64(arguments, 3)
    rows = load_int64(arguments, 4)
    columns = load_int64(arguments, 5)
    as_tree = load_int64(arguments, 6)
    block = load_int64(arguments, 7)
    stride = rows * columns * 4
    for row in range(index * block, min((index + 1) * block, rows)):
        source = parts + row * columns * 4
        out = y + row * columns * 4
        for i in range(0, columns, LANES):
            lanes = min(LANES, columns - i)
            if as_tree != 0:
                value = balanced(source, stride, count, i, lanes)
            else:
                value = ascending(source, stride, count, i, lanes)
            if bias != 0:
                value = value + part(bias, 0, 0, i, lanes)
            if lanes == LANES:
                store(out, i, value)
            else:
                store_masked(out, i, value, lanes)


JOIN = Kernel(join_task)
