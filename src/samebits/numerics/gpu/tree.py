"""Kernels of the GEMM clause of `tp-invariant`: K in equal leaves, each a chain, joined by a balanced tree in float32.

A rank that holds 8, 4, 2 or 1 of the leaves computes its part of the same tree, so the bits do not depend on the
tensor-parallel degree. The tree is kept like a binary counter: a finished leaf is added to the pending sum of its
level, from the left, as long as there is one, and then waits there itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.gemm import grouped_tile, load_tile, store_tile


@triton.jit
def leaf_chain(
    x, weight, row_inside, column_inside, row, column, k, depth, first, last,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, ATOM: tl.constexpr,
):  # fmt: skip
    """The chain over k from first to last, an atom at a time."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, ATOM):
        left = tl.load(x + row[:, None] * depth + (start + k)[None, :], mask=row_inside[:, None], other=0.0)
        right = tl.load(
            weight + column[:, None] * depth + (start + k)[None, :], mask=column_inside[:, None], other=0.0
        )
        total = tl.dot(left, right.T, total, input_precision="ieee")
    return total


@triton.jit
def tree_reference(
    x,
    weight,
    out,
    rows,
    column_units,
    depth_units,
    COLUMN_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ATOM: tl.constexpr,
    LEAVES: tl.constexpr,
):
    """The clause's reference: leaf after leaf, the sums written out."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    leaf = depth // LEAVES
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, ATOM)
    row_inside, column_inside = row < rows, column < columns
    # Level by level: sums of one leaf, of two, of four.
    ones = ()
    for index in tl.static_range(LEAVES):
        ones = ones + (  # type: ignore[assignment]
            leaf_chain(
                x, weight, row_inside, column_inside, row, column, k, depth, index * leaf, (index + 1) * leaf,
                COLUMNS, ROWS, ATOM,
            ),
        )  # fmt: skip
    if LEAVES == 8:
        total = ((ones[0] + ones[1]) + (ones[2] + ones[3])) + ((ones[4] + ones[5]) + (ones[6] + ones[7]))
    elif LEAVES == 4:
        total = (ones[0] + ones[1]) + (ones[2] + ones[3])
    elif LEAVES == 2:
        total = ones[0] + ones[1]
    else:
        total = ones[0]
    tl.store(
        out + row[:, None] * columns + column[None, :],
        total.to(out.dtype.element_ty),
        mask=row_inside[:, None] & column_inside[None, :],
    )


@triton.jit
def tree_gemm(
    x,
    weight,
    out,
    rows,
    column_units,
    depth_units,
    COLUMN_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SWAP: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    MASK_COLUMNS: tl.constexpr,
    LEAVES: tl.constexpr,
):
    """One loop over K, which folds at the borders of leaves and so keeps its pipeline full. A leaf is a whole number
    of blocks of K, at least two."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    row_tile, column_tile = grouped_tile(
        tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS), GROUP
    )
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    row_start = row_tile * ROWS
    column_start = column_tile * COLUMNS
    row_inside = row < rows - row_start
    column_inside = column < columns - column_start
    left_pointers = x + row_start.to(tl.int64) * depth + row[:, None] * depth + k[None, :]
    right_pointers = weight + column_start.to(tl.int64) * depth + column[:, None] * depth + k[None, :]
    if SWAP:
        total = tl.zeros((COLUMNS, ROWS), tl.float32)
    else:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
    one, two, four = total, total, total
    steps = depth // (LEAVES * DEPTH)
    for step in range(0, steps * LEAVES):
        left = load_tile(left_pointers, row_inside, row_inside, MASK_ROWS, False)
        right = load_tile(right_pointers, column_inside, column_inside, MASK_COLUMNS, False)
        if SWAP:
            total = tl.dot(right, left.T, total, input_precision="ieee")
        else:
            total = tl.dot(left, right.T, total, input_precision="ieee")
        left_pointers += DEPTH
        right_pointers += DEPTH
        if LEAVES > 1:
            if (step + 1) % steps == 0:
                leaf = step // steps
                if leaf % 2 == 0:
                    one = total
                else:
                    total = one + total
                    if LEAVES > 2:
                        if leaf % 4 == 1:
                            two = total
                        else:
                            total = two + total
                            if LEAVES > 4:
                                if leaf == 3:
                                    four = total
                                else:
                                    total = four + total
                if leaf < LEAVES - 1:
                    total = tl.zeros_like(total)
    store_tile(
        total, out, out + row_start.to(tl.int64) * columns + column_start,
        row, column, row_inside, column_inside, columns, SWAP, MASK_ROWS, MASK_COLUMNS, False,
    )  # fmt: skip
