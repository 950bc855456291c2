"""The gate and up product with its activation for many rows on Hopper (sm_90): `gemm_hopper` with two sums a group.

The clause is that of the pair, as in `gated`. A tile is 2 * GROUP_ROWS rows and COLUMNS columns of gate with the same
of up, which stand in one operand, so a product is as wide as the plain kernel's.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from samebits.numerics.gpu import arithmetic
from samebits.numerics.gpu.gemm_hopper import GROUP_ROWS, chain, tile_place

exp = gluon.jit(arithmetic.exp.fn)


@gluon.jit
def produce(
    x, weight, rows, width, depth, x_ring, weight_ring, ready, free,
    COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy the operands' blocks of every tile of this program into the rings."""
    row_tiles = gl.cdiv(rows, 2 * GROUP_ROWS)
    column_tiles = gl.cdiv(width, COLUMNS)
    slot = 0
    phase = 1
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        row_tile, column_tile = tile_place(tile, row_tiles, column_tiles, GROUP)
        row_start = row_tile * (2 * GROUP_ROWS)
        column_start = column_tile * COLUMNS
        for start in range(0, depth, DEPTH):
            mbarrier.wait(free.index(slot), phase)
            mbarrier.expect(ready.index(slot), 2 * x.block_type.nbytes + 2 * weight.block_type.nbytes)
            for which in gl.static_range(2):
                tma.async_copy_global_to_shared(
                    x,
                    [row_start + which * GROUP_ROWS, start],
                    ready.index(slot),
                    x_ring.index(2 * slot + which),
                )
                tma.async_copy_global_to_shared(
                    weight, [column_start + which * width, start], ready.index(slot),
                    weight_ring.index(slot).slice(which * COLUMNS, COLUMNS),
                )  # fmt: skip
            slot += 1
            if slot == STAGES:
                slot = 0
                phase = phase ^ 1


@gluon.jit
def halves(x, COLUMNS: gl.constexpr):
    """Columns 0 .. COLUMNS / 2 - 1 and the others, which every thread has of its rows."""
    return gl.split(gl.permute(gl.reshape(x, (GROUP_ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@gluon.jit
def store_activation(gate, up, out, row_start, column_start, rows, width, COLUMNS: gl.constexpr):
    """silu(gate) * up of two float32 sums, both rounded first."""
    act: gl.constexpr = out.dtype.element_ty
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // COLUMNS, COLUMNS // 8], [4, 1], [1, 0])
    gate = gate.to(act).to(gl.float32)
    value = gl.div_rn(gate, 1.0 + exp(-gate)) * up.to(act).to(gl.float32)
    rounded = gl.convert_layout(value.to(act), flat)
    row = row_start + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, flat))
    column = column_start + gl.arange(0, COLUMNS, gl.SliceLayout(0, flat))
    inside = gl.expand_dims(row < rows, 1) & gl.expand_dims(column < width, 0)
    places = gl.expand_dims(row.to(gl.int64) * width, 1) + gl.expand_dims(column, 0)
    gl.store(out + places, rounded, mask=inside)


@gluon.jit
def consume(
    out, rows, width, depth, x_ring, weight_ring, ready, free,
    COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, WHICH: gl.constexpr,
):  # fmt: skip
    """The rows WHICH * GROUP_ROWS .. of every tile of this program."""
    row_tiles = gl.cdiv(rows, 2 * GROUP_ROWS)
    column_tiles = gl.cdiv(width, COLUMNS)
    slot = 0
    phase = 0
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * COLUMNS, 16])
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        total = gl.zeros([GROUP_ROWS, 2 * COLUMNS], gl.float32, layout)
        total, slot, phase = chain(
            total, depth // DEPTH, slot, phase, x_ring, weight_ring, ready, free, STAGES, 2, WHICH
        )
        gate, up = halves(total, 2 * COLUMNS)
        row_tile, column_tile = tile_place(tile, row_tiles, column_tiles, GROUP)
        row_start = row_tile * (2 * GROUP_ROWS) + WHICH * GROUP_ROWS
        store_activation(gate, up, out, row_start, column_tile * COLUMNS, rows, width, COLUMNS)


@gluon.jit
def hopper_gated_gemm(
    x,
    weight,
    out,
    rows,
    width_units,
    depth_units,
    WIDTH_UNIT: gl.constexpr,
    DEPTH_UNIT: gl.constexpr,
    COLUMNS: gl.constexpr,
    DEPTH: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Grid (programs,), any number. K is a whole number of blocks, and the width one of tiles."""
    width = width_units * WIDTH_UNIT
    depth = depth_units * DEPTH_UNIT
    act: gl.constexpr = x.dtype
    x_ring = gl.allocate_shared_memory(act, [2 * STAGES, GROUP_ROWS, DEPTH], x.layout)
    weight_ring = gl.allocate_shared_memory(act, [STAGES, 2 * COLUMNS, DEPTH], weight.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (consume, (
                out, rows, width, depth, x_ring, weight_ring, ready, free, COLUMNS, DEPTH, GROUP, STAGES, 0,
            )),
            (consume, (
                out, rows, width, depth, x_ring, weight_ring, ready, free, COLUMNS, DEPTH, GROUP, STAGES, 1,
            )),
            (produce, (
                x, weight, rows, width, depth, x_ring, weight_ring, ready, free, COLUMNS, DEPTH, GROUP, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
