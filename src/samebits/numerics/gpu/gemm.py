"""Kernels of the GEMM clause: out[m, n] = chain over k of x[m, k] weight[n, k], plus bias[n], rounded once.

x [rows, depth], weight [columns, depth] as in checkpoints, out [rows, columns], all row-major and contiguous. The
chain runs over K in ascending order in one accumulator; how the outputs are cut into tiles, and whether the
weights stand on the left or the right side of the product, is free.

Lengths arrive as a count of units (`depth_units * DEPTH_UNIT`), so that the compiler knows what they are
divisible by without looking at their values.

Dependent launch: before its wait a kernel reads weights only. `WAIT` 0: launched the plain way. 1: wait for the
kernel ahead at once, let the next one start when the chain is done. 2: let the next one start at once. `PREFETCH`
is how many elements of each of its weight rows a program asks into the second-level cache before it waits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.gemm_tile import (
    add_bias,
    begin_dependent,
    descriptor_sums,
    pointer_sums,
    store_tile,
    tile_bounds,
    tile_corner,
)


@triton.jit
def chain_gemm(
    x,
    weight,
    bias,
    out,
    rows,
    column_units,
    depth_units,
    COLUMN_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ATOM: tl.constexpr,
    BIAS: tl.constexpr,
):
    """The clause's reference: one product of depth ATOM after another, every load masked, nothing arranged."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, ATOM)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, ATOM):
        left = tl.load(
            x + row[:, None] * depth + (start + k)[None, :],
            mask=(row < rows)[:, None] & (start + k < depth)[None, :],
            other=0.0,
        )
        right = tl.load(
            weight + column[:, None] * depth + (start + k)[None, :],
            mask=(column < columns)[:, None] & (start + k < depth)[None, :],
            other=0.0,
        )
        total = tl.dot(left, right.T, total, input_precision="ieee")
    if BIAS:
        total = total + tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + row[:, None] * columns + column[None, :],
        total.to(out.dtype.element_ty),
        mask=(row < rows)[:, None] & (column < columns)[None, :],
    )


@triton.jit
def tile_gemm(
    x,
    weight,
    bias,
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
    MASK_DEPTH: tl.constexpr,
    BIAS: tl.constexpr,
    LEAVES: tl.constexpr,
    WAIT: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
):
    """One output tile a program, loads by pointers. SWAP computes the transposed tile: weights on the left."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    row_start, column_start, row_inside, column_inside = tile_bounds(
        tl.program_id(0), rows, columns, ROWS, COLUMNS, GROUP
    )
    panel = weight + column_start.to(tl.int64) * depth
    if WAIT > 0:
        begin_dependent(panel, depth, COLUMNS, WAIT, PREFETCH, THREADS)
    total, _ = pointer_sums(
        x + row_start.to(tl.int64) * depth, panel, panel, row_inside, column_inside, depth, 0, depth,
        ROWS, COLUMNS, DEPTH, SWAP, MASK_ROWS, MASK_COLUMNS, MASK_DEPTH, LEAVES, False,
    )  # fmt: skip
    if WAIT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    if BIAS:
        total = add_bias(total, bias, column_start, columns, COLUMNS, SWAP, MASK_COLUMNS)
    store_tile(
        total, out, row_start, column_start, rows, columns, ROWS, COLUMNS, SWAP, MASK_ROWS, MASK_COLUMNS
    )


@triton.jit
def descriptor_gemm(
    x,
    weight,
    weight_pointer,
    bias,
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
    BIAS: tl.constexpr,
    LEAVES: tl.constexpr,
    WAIT: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
):
    """One output tile a program, loads by the copy engine, which reads zeros outside of x and weight."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    row_start, column_start = tile_corner(
        tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS), ROWS, COLUMNS, GROUP
    )
    if WAIT > 0:
        panel = weight_pointer + column_start.to(tl.int64) * depth
        begin_dependent(panel, depth, COLUMNS, WAIT, PREFETCH, THREADS)
    total, _ = descriptor_sums(
        x, weight, row_start, column_start, 0, 0, depth, ROWS, COLUMNS, DEPTH, SWAP, LEAVES, False
    )
    if WAIT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    if BIAS:
        total = add_bias(total, bias, column_start, columns, COLUMNS, SWAP, True)
    store_tile(total, out, row_start, column_start, rows, columns, ROWS, COLUMNS, SWAP, True, True)


@triton.jit
def persistent_gemm(
    x,
    weight,
    bias,
    out,
    rows,
    column_units,
    depth_units,
    programs,
    COLUMN_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SWAP: tl.constexpr,
    BIAS: tl.constexpr,
    LEAVES: tl.constexpr,
):
    """A fixed number of programs walk the tiles; the next tile's loads run while a finished one is written."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    row_tiles = tl.cdiv(rows, ROWS)
    column_tiles = tl.cdiv(columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, programs, flatten=True):
        row_start, column_start = tile_corner(tile, row_tiles, column_tiles, ROWS, COLUMNS, GROUP)
        total, _ = descriptor_sums(
            x, weight, row_start, column_start, 0, 0, depth, ROWS, COLUMNS, DEPTH, SWAP, LEAVES, False
        )
        if BIAS:
            total = add_bias(total, bias, column_start, columns, COLUMNS, SWAP, True)
        store_tile(total, out, row_start, column_start, rows, columns, ROWS, COLUMNS, SWAP, True, True)
