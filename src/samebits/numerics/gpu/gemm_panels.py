"""The GEMM clause for few rows on Hopper (sm_90), as `gemm_ahead`, in panels of 32 columns.

A tensor-core product of four warps has 64 rows on its left side. Here they are a panel of the gate and the same
panel of the up matrix, whose sums meet in the last step (`silu(gate) * up`, the clause of the pair: see `gated`), or
one panel and whatever lies behind it in shared memory, whose sums nobody reads: then a matrix of 4,096 columns keeps
128 multiprocessors at work and not 64.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from samebits.numerics.gpu.dependent_gluon import dependents_may_start, wait_for_the_kernel_ahead
from samebits.numerics.gpu.gated import gated_tile
from samebits.numerics.gpu.gemm_ahead import PRODUCER_REGISTERS

PANEL = gl.constexpr(32)
"""Columns of a panel."""
PIECE = gl.constexpr(64)
"""Elements of K in a block of shared memory: 128 bytes, as wide as the swizzle."""


@gluon.jit
def copy_weights(
    weight, block, steps, width, weight_ring, ready, slot, DEPTH: gl.constexpr, PANELS: gl.constexpr
):
    """Begin the copy of this program's weight block number `block`: of every piece of K, all panels."""
    column = (gl.program_id(0) + block // steps * gl.num_programs(0)) * PANEL
    start = block % steps * DEPTH
    pieces: gl.constexpr = DEPTH // PIECE
    for piece in gl.static_range(pieces):
        for panel in gl.static_range(PANELS):
            tma.async_copy_global_to_shared(
                weight,
                [column + panel * width, start + piece * PIECE],
                ready.index(slot),
                weight_ring.index((slot * pieces + piece) * PANELS + panel),
            )


@gluon.jit
def copy_x(x, block, steps, x_ring, ready, slot, DEPTH: gl.constexpr):
    """Begin the copy of the block of x that goes with a weight block."""
    start = block % steps * DEPTH
    pieces: gl.constexpr = DEPTH // PIECE
    for piece in gl.static_range(pieces):
        tma.async_copy_global_to_shared(
            x, [0, start + piece * PIECE], ready.index(slot), x_ring.index(slot * pieces + piece)
        )


@gluon.jit
def produce(
    x, weight, width, tiles, steps, x_ring, weight_ring, ready, free,
    DEPTH: gl.constexpr, STAGES: gl.constexpr, PANELS: gl.constexpr, WAIT: gl.constexpr,
):  # fmt: skip
    """Copy both operands' blocks of every tile of this program into the rings."""
    size: gl.constexpr = (x.block_type.nbytes + PANELS * weight.block_type.nbytes) * (DEPTH // PIECE)
    blocks = gl.cdiv(tiles - gl.program_id(0), gl.num_programs(0)) * steps
    ahead = gl.minimum(blocks, STAGES)
    for block in range(0, ahead):
        mbarrier.expect(ready.index(block), size)
        copy_weights(weight, block, steps, width, weight_ring, ready, block, DEPTH, PANELS)
    if WAIT > 0:
        wait_for_the_kernel_ahead()
    for block in range(0, ahead):
        copy_x(x, block, steps, x_ring, ready, block, DEPTH)
    slot = 0
    phase = 0
    for block in range(STAGES, blocks):
        mbarrier.wait(free.index(slot), phase)
        mbarrier.expect(ready.index(slot), size)
        copy_weights(weight, block, steps, width, weight_ring, ready, slot, DEPTH, PANELS)
        copy_x(x, block, steps, x_ring, ready, slot, DEPTH)
        slot += 1
        if slot == STAGES:
            slot = 0
            phase = phase ^ 1
    if WAIT == 1:
        dependents_may_start()


@gluon.jit
def chain(
    total, steps, slot, phase, x_ring, weight_ring, ready, free,
    DEPTH: gl.constexpr, STAGES: gl.constexpr, PANELS: gl.constexpr,
):  # fmt: skip
    """The chain over the next `steps` blocks of the ring: (sum, slot, phase). What `total` held is dropped."""
    pieces: gl.constexpr = DEPTH // PIECE
    for step in range(0, steps):
        mbarrier.wait(ready.index(slot), phase)
        for piece in gl.static_range(pieces):
            place = slot * pieces + piece
            left = weight_ring.index(place * PANELS)._reinterpret(
                x_ring.dtype, [2 * PANEL, PIECE], weight_ring.layout
            )
            total = warpgroup_mma(
                left,
                x_ring.index(place).permute((1, 0)),
                total,
                use_acc=(step > 0) | (piece > 0),
                is_async=True,
            )
        total = warpgroup_mma_wait(pieces, deps=[total])
        if step > 0:
            mbarrier.arrive(free.index((slot + STAGES - 1) % STAGES), count=1)
        slot += 1
        if slot == STAGES:
            slot = 0
            phase = phase ^ 1
    total = warpgroup_mma_wait(0, deps=[total])
    mbarrier.arrive(free.index((slot + STAGES - 1) % STAGES), count=1)
    return total, slot, phase


@gluon.jit
def tile_sum(
    total, steps, slot, phase, x_ring, weight_ring, ready, free,
    DEPTH: gl.constexpr, STAGES: gl.constexpr, PANELS: gl.constexpr, LEAVES: gl.constexpr,
):  # fmt: skip
    """A tile's sum over LEAVES times `steps` blocks: (sum, slot, phase). A tree is that of `gemm_tile.add_leaf`."""
    empty = gl.full_like(total, -0.0)
    one = empty
    two = empty
    four = empty
    for leaf in range(0, LEAVES):
        total, slot, phase = chain(
            total, steps, slot, phase, x_ring, weight_ring, ready, free, DEPTH, STAGES, PANELS
        )
        if LEAVES > 1:
            one = one + total
        if LEAVES > 2:
            if leaf % 2 == 1:
                two = two + one
                one = empty
                if LEAVES > 4:
                    if leaf == 3:
                        four = two
                        two = empty
    if LEAVES == 2:
        total = one
    elif LEAVES == 4:
        total = two
    elif LEAVES == 8:
        total = four + two
    return total, slot, phase


@gluon.jit
def consume(
    out, rows, width, tiles, steps, x_ring, weight_ring, ready, free,
    ROWS: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr, PANELS: gl.constexpr, LEAVES: gl.constexpr,
):  # fmt: skip
    """All tiles of this program."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    flat: gl.constexpr = gl.BlockedLayout([2, 8, 1], [1, 4, 8], [1, 1, 4], [1, 0, 2])
    slot = 0
    phase = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        total = gl.zeros([2 * PANEL, ROWS], gl.float32, layout)
        total, slot, phase = tile_sum(
            total,
            steps // LEAVES,
            slot,
            phase,
            x_ring,
            weight_ring,
            ready,
            free,
            DEPTH,
            STAGES,
            PANELS,
            LEAVES,
        )
        panels = gl.convert_layout(gl.reshape(total, (2, PANEL, ROWS)), flat)
        first, second = gl.split(gl.permute(panels, (1, 2, 0)))
        if PANELS == 2:
            first = gated_tile(first, second, x_ring.dtype)
        column = tile * PANEL + gl.arange(0, PANEL, gl.SliceLayout(1, first.type.layout))
        row = gl.arange(0, ROWS, gl.SliceLayout(0, first.type.layout))
        places = gl.expand_dims(column, 1) + gl.expand_dims(row.to(gl.int64) * width, 0)
        inside = gl.expand_dims(column < width, 1) & gl.expand_dims(row < rows, 0)
        gl.store(out + places, first.to(out.dtype.element_ty), mask=inside)


@gluon.jit
def panel_gemm(
    x,
    weight,
    out,
    rows,
    width_units,
    depth_units,
    WIDTH_UNIT: gl.constexpr,
    DEPTH_UNIT: gl.constexpr,
    ROWS: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
    PANELS: gl.constexpr,
    LEAVES: gl.constexpr,
    WAIT: gl.constexpr,
):
    """Grid (programs,), any number. At most ROWS rows; PANELS: 2 for the gated pair; a leaf is a whole number of
    blocks of K. WAIT as in `gemm`."""
    if WAIT == 2:
        dependents_may_start()
    width = width_units * WIDTH_UNIT
    tiles = gl.cdiv(width, PANEL)
    steps = depth_units * DEPTH_UNIT // DEPTH
    act: gl.constexpr = x.dtype
    pieces: gl.constexpr = STAGES * DEPTH // PIECE
    x_ring = gl.allocate_shared_memory(act, [pieces, ROWS, PIECE], x.layout)
    # One panel more: the product of the last panel reads on behind it.
    weight_ring = gl.allocate_shared_memory(act, [PANELS * pieces + 2 - PANELS, PANEL, PIECE], weight.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (consume, (
                out, rows, width, tiles, steps, x_ring, weight_ring, ready, free,
                ROWS, DEPTH, STAGES, PANELS, LEAVES,
            )),
            (produce, (
                x, weight, width, tiles, steps, x_ring, weight_ring, ready, free,
                DEPTH, STAGES, PANELS, WAIT,
            )),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )  # fmt: skip
