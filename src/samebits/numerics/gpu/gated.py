"""The gate and up product with the gated activation in its last step: out = silu(x gate^T) * (x up^T).

The clause is that of the pair: both products are chains of their own, each rounded to act, then the activation, as
if the products had been written and read again. The weight is [2 width, depth], gate above up; a program computes
the same columns of both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.arithmetic import exp
from samebits.numerics.gpu.gemm_tile import (
    begin_dependent,
    descriptor_sums,
    pointer_sums,
    store_tile,
    tile_bounds,
    tile_corner,
)


@triton.jit
def gated_tile(gate, up, ACT: tl.constexpr):
    """silu(gate) * up of two float32 sums, both rounded to act first; float32."""
    gate = gate.to(ACT).to(tl.float32)
    up = up.to(ACT).to(tl.float32)
    return tl.div_rn(gate, 1.0 + exp(-gate)) * up


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
    row_start, column_start, row_inside, column_inside = tile_bounds(
        tl.program_id(0), rows, width, ROWS, COLUMNS, GROUP
    )
    gate_panel = weight + column_start.to(tl.int64) * depth
    up_panel = weight + (column_start + width).to(tl.int64) * depth
    if WAIT > 0:
        begin_dependent(gate_panel, depth, COLUMNS, WAIT, PREFETCH, THREADS)
    gate, up = pointer_sums(
        x + row_start.to(tl.int64) * depth, gate_panel, up_panel, row_inside, column_inside, depth, 0, depth,
        ROWS, COLUMNS, DEPTH, SWAP, MASK_ROWS, MASK_COLUMNS, MASK_DEPTH, 1, True,
    )  # fmt: skip
    if WAIT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    value = gated_tile(gate, up, out.dtype.element_ty)
    store_tile(value, out, row_start, column_start, rows, width, ROWS, COLUMNS, SWAP, True, True)


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
        row_start, column_start = tile_corner(tile, row_tiles, column_tiles, ROWS, COLUMNS, GROUP)
        gate, up = descriptor_sums(
            x, weight, row_start, column_start, column_start + width, 0, depth,
            ROWS, COLUMNS, DEPTH, SWAP, 1, True,
        )  # fmt: skip
        value = gated_tile(gate, up, out.dtype.element_ty)
        store_tile(value, out, row_start, column_start, rows, width, ROWS, COLUMNS, SWAP, True, True)
