"""The GEMM clause for few rows on Hopper (sm_90): weights are on their way before the kernel ahead ends.

Written in Gluon, as `gemm_hopper`. Dependent launch lets a kernel start while the one ahead of it still runs; it may
read weights then, but not x. The producer warp fills the whole ring with weights, waits for the kernel ahead, sends x
after them, and goes on with both; programs walk tiles, so the ring never runs dry between two. Weights stand on the
left of the product: each consumer group owns GROUP_COLUMNS of the tile's columns.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from samebits.numerics.gpu.dependent_gluon import dependents_may_start, wait_for_the_kernel_ahead
from samebits.numerics.gpu.gemm_hopper import tile_sum

GROUP_COLUMNS = gl.constexpr(64)
"""Columns of a consumer group: what one warpgroup product computes."""
PRODUCER_REGISTERS = gl.constexpr(40)
"""Not the 24 with which a warp waits for its work: asking for as many as it has might wait for ever."""


@gluon.jit
def copy_weights(
    weight, block, steps, weight_ring, ready, slot,
    COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUPS: gl.constexpr,
):  # fmt: skip
    """Begin the copy of this program's weight block number `block`."""
    column = (gl.program_id(0) + block // steps * gl.num_programs(0)) * COLUMNS
    start = block % steps * DEPTH
    for which in gl.static_range(GROUPS):
        tma.async_copy_global_to_shared(
            weight,
            [column + which * GROUP_COLUMNS, start],
            ready.index(slot),
            weight_ring.index(GROUPS * slot + which),
        )


@gluon.jit
def produce(
    x, weight, tiles, steps, x_ring, weight_ring, ready, free,
    COLUMNS: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr, WAIT: gl.constexpr,
):  # fmt: skip
    """Copy both operands' blocks of every tile of this program into the rings."""
    groups: gl.constexpr = COLUMNS // GROUP_COLUMNS
    size: gl.constexpr = x.block_type.nbytes + groups * weight.block_type.nbytes
    blocks = gl.cdiv(tiles - gl.program_id(0), gl.num_programs(0)) * steps
    ahead = gl.minimum(blocks, STAGES)
    for block in range(0, ahead):
        mbarrier.expect(ready.index(block), size)
        copy_weights(weight, block, steps, weight_ring, ready, block, COLUMNS, DEPTH, groups)
    if WAIT > 0:
        wait_for_the_kernel_ahead()
    for block in range(0, ahead):
        tma.async_copy_global_to_shared(
            x, [0, block % steps * DEPTH], ready.index(block), x_ring.index(block)
        )
    slot = 0
    phase = 0
    for block in range(STAGES, blocks):
        mbarrier.wait(free.index(slot), phase)
        mbarrier.expect(ready.index(slot), size)
        copy_weights(weight, block, steps, weight_ring, ready, slot, COLUMNS, DEPTH, groups)
        tma.async_copy_global_to_shared(x, [0, block % steps * DEPTH], ready.index(slot), x_ring.index(slot))
        slot += 1
        if slot == STAGES:
            slot = 0
            phase = phase ^ 1
    if WAIT == 1:
        dependents_may_start()


@gluon.jit
def consume(
    out, rows, columns, tiles, steps, x_ring, weight_ring, ready, free,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, STAGES: gl.constexpr, LEAVES: gl.constexpr, WHICH: gl.constexpr,
):  # fmt: skip
    """The columns WHICH * GROUP_COLUMNS .. of every tile of this program."""
    groups: gl.constexpr = COLUMNS // GROUP_COLUMNS
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    flat: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, 4], [0, 1])
    slot = 0
    phase = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        total = gl.zeros([GROUP_COLUMNS, ROWS], gl.float32, layout)
        total, slot, phase = tile_sum(
            total, steps // LEAVES, slot, phase, weight_ring, x_ring, ready, free, ready,
            STAGES, groups, WHICH, LEAVES, False,
        )  # fmt: skip
        rounded = gl.convert_layout(total.to(out.dtype.element_ty), flat)
        column = tile * COLUMNS + WHICH * GROUP_COLUMNS + gl.arange(0, GROUP_COLUMNS, gl.SliceLayout(1, flat))
        row = gl.arange(0, ROWS, gl.SliceLayout(0, flat))
        places = gl.expand_dims(column, 1) + gl.expand_dims(row.to(gl.int64) * columns, 0)
        inside = gl.expand_dims(column < columns, 1) & gl.expand_dims(row < rows, 0)
        gl.store(out + places, rounded, mask=inside)


@gluon.jit
def ahead_gemm(
    x,
    weight,
    out,
    rows,
    column_units,
    depth_units,
    COLUMN_UNIT: gl.constexpr,
    DEPTH_UNIT: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
    LEAVES: gl.constexpr,
    WAIT: gl.constexpr,
):
    """Grid (programs,), any number. At most ROWS rows; a leaf is a whole number of blocks of K. WAIT as in `gemm`."""
    if WAIT == 2:
        dependents_may_start()
    columns = column_units * COLUMN_UNIT
    tiles = gl.cdiv(columns, COLUMNS)
    steps = depth_units * DEPTH_UNIT // DEPTH
    act: gl.constexpr = x.dtype
    groups: gl.constexpr = COLUMNS // GROUP_COLUMNS
    x_ring = gl.allocate_shared_memory(act, [STAGES, ROWS, DEPTH], x.layout)
    weight_ring = gl.allocate_shared_memory(act, [groups * STAGES, GROUP_COLUMNS, DEPTH], weight.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=groups)
    fence_async_shared()
    if groups == 1:
        gl.warp_specialize(
            [
                (consume, (
                    out, rows, columns, tiles, steps, x_ring, weight_ring, ready, free,
                    ROWS, COLUMNS, STAGES, LEAVES, 0,
                )),
                (produce, (
                    x, weight, tiles, steps, x_ring, weight_ring, ready, free, COLUMNS, DEPTH, STAGES, WAIT,
                )),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (consume, (
                    out, rows, columns, tiles, steps, x_ring, weight_ring, ready, free,
                    ROWS, COLUMNS, STAGES, LEAVES, 0,
                )),
                (consume, (
                    out, rows, columns, tiles, steps, x_ring, weight_ring, ready, free,
                    ROWS, COLUMNS, STAGES, LEAVES, 1,
                )),
                (produce, (
                    x, weight, tiles, steps, x_ring, weight_ring, ready, free, COLUMNS, DEPTH, STAGES, WAIT,
                )),
            ],
            [4, 1],
            [120, PRODUCER_REGISTERS],
        )  # fmt: skip
