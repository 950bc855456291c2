"""The gate and up product with the gated activation in its last step: out = silu(x gate^T) * (x up^T).

The clause is that of the pair: both products are chains of their own, each rounded to act, then the activation, as
if the products had been written and read again. The weight is [2 width, depth], gate above up; a program computes
the same columns of both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.arithmetic import exp
from samebits.numerics.gpu.gemm import begin_dependent, grouped_tile, load_tile


@triton.jit
def gated_tile(gate, up, ACT: tl.constexpr):
    """silu(gate) * up of two float32 sums, both rounded to act first; float32."""
    gate = gate.to(ACT).to(tl.float32)
    up = up.to(ACT).to(tl.float32)
    return tl.div_rn(gate, 1.0 + exp(-gate)) * up


@triton.jit
def store_gated(
    gate, up, out, row, column, row_inside, column_inside, width, SWAP: tl.constexpr, ACT: tl.constexpr
):
    value = gated_tile(gate, up, ACT).to(ACT)
    if SWAP:
        tl.store(
            out + row[None, :] * width + column[:, None],
            value,
            mask=row_inside[None, :] & column_inside[:, None],
        )
    else:
        tl.store(
            out + row[:, None] * width + column[None, :],
            value,
            mask=row_inside[:, None] & column_inside[None, :],
        )


@triton.jit
def gated_gemm(
    x,
    weight,
    out,
    rows,
    width_units,
    depth_units,
    WIDTH_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SWAP: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    MASK_COLUMNS: tl.constexpr,
    MASK_DEPTH: tl.constexpr,
    WAIT: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
):
    """COLUMNS columns of gate and the same of up a program, loads by pointers."""
    width = width_units * WIDTH_UNIT
    depth = depth_units * DEPTH_UNIT
    row_tile, column_tile = grouped_tile(
        tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(width, COLUMNS), GROUP
    )
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    row_start = row_tile * ROWS
    column_start = column_tile * COLUMNS
    row_inside = row < rows - row_start
    column_inside = column < width - column_start
    gate_panel = weight + column_start.to(tl.int64) * depth
    up_panel = weight + (column_start + width).to(tl.int64) * depth
    if WAIT > 0:
        begin_dependent(gate_panel, depth, COLUMNS, WAIT, PREFETCH, THREADS)
    x_pointers = x + row_start.to(tl.int64) * depth + row[:, None] * depth + k[None, :]
    gate_pointers = gate_panel + column[:, None] * depth + k[None, :]
    up_pointers = up_panel + column[:, None] * depth + k[None, :]
    if SWAP:
        gate = tl.zeros((COLUMNS, ROWS), tl.float32)
        up = tl.zeros((COLUMNS, ROWS), tl.float32)
    else:
        gate = tl.zeros((ROWS, COLUMNS), tl.float32)
        up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, DEPTH):
        k_inside = k < depth - start
        left = load_tile(x_pointers, row_inside, k_inside, MASK_ROWS, MASK_DEPTH)
        gate_right = load_tile(gate_pointers, column_inside, k_inside, MASK_COLUMNS, MASK_DEPTH)
        up_right = load_tile(up_pointers, column_inside, k_inside, MASK_COLUMNS, MASK_DEPTH)
        if SWAP:
            gate = tl.dot(gate_right, left.T, gate, input_precision="ieee")
            up = tl.dot(up_right, left.T, up, input_precision="ieee")
        else:
            gate = tl.dot(left, gate_right.T, gate, input_precision="ieee")
            up = tl.dot(left, up_right.T, up, input_precision="ieee")
        x_pointers += DEPTH
        gate_pointers += DEPTH
        up_pointers += DEPTH
    if WAIT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    store_gated(
        gate, up, out + row_start.to(tl.int64) * width + column_start,
        row, column, row_inside, column_inside, width, SWAP, out.dtype.element_ty,
    )  # fmt: skip


@triton.jit
def gated_descriptor_gemm(
    x,
    weight,
    weight_pointer,
    out,
    rows,
    width_units,
    depth_units,
    programs,
    WIDTH_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SWAP: tl.constexpr,
    WAIT: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
):
    """The same by the copy engine. `programs` walk the tiles; with a program a tile, each walks one."""
    width = width_units * WIDTH_UNIT
    depth = depth_units * DEPTH_UNIT
    row_tiles = tl.cdiv(rows, ROWS)
    column_tiles = tl.cdiv(width, COLUMNS)
    if WAIT > 0:
        panel = weight_pointer + tl.program_id(0).to(tl.int64) * COLUMNS * depth
        begin_dependent(panel, depth, COLUMNS, WAIT, PREFETCH, THREADS)
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, programs, flatten=True):
        row_tile, column_tile = grouped_tile(tile, row_tiles, column_tiles, GROUP)
        row_start = row_tile * ROWS
        column_start = column_tile * COLUMNS
        if SWAP:
            gate = tl.zeros((COLUMNS, ROWS), tl.float32)
            up = tl.zeros((COLUMNS, ROWS), tl.float32)
        else:
            gate = tl.zeros((ROWS, COLUMNS), tl.float32)
            up = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, depth, DEPTH):
            left = x.load([row_start, start])
            gate_right = weight.load([column_start, start])
            up_right = weight.load([column_start + width, start])
            if SWAP:
                gate = tl.dot(gate_right, left.T, gate, input_precision="ieee")
                up = tl.dot(up_right, left.T, up, input_precision="ieee")
            else:
                gate = tl.dot(left, gate_right.T, gate, input_precision="ieee")
                up = tl.dot(left, up_right.T, up, input_precision="ieee")
        row = tl.arange(0, ROWS)
        column = tl.arange(0, COLUMNS)
        store_gated(
            gate, up, out + row_start.to(tl.int64) * width + column_start,
            row, column, row < rows - row_start, column < width - column_start, width, SWAP, out.dtype.element_ty,
        )  # fmt: skip
