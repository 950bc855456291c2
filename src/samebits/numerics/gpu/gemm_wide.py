"""The GEMM clause for few rows on Hopper (sm_90), as `gemm_ahead`, in tiles so wide that a program has one.

Every program reads all of x, so what it reads from the second-level cache falls with the number of tiles. Here a tile
is up to three groups of warps wide, each with its own columns of the weights on the left side of the product, all with
the same block of x on the right. Weights and x have rings of their own: weights come from memory and want to be asked
for long ahead, x comes from the cache and does not, and what x does not take is room for weights.

Of the gated pair (`silu(gate) * up`, the clause of the pair: see `gated`) a group's 64 lines are eight of gate, the
same eight of up, and so on: then both sums of a column lie in one thread.
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

from samebits.numerics.gpu.gated import gated_tile
from samebits.numerics.gpu.gemm_ahead import (
    PRODUCER_REGISTERS,
    dependents_may_start,
    wait_for_the_kernel_ahead,
)

GROUP_LINES = gl.constexpr(64)
"""Lines on the left side of a group's product."""
PIECE = gl.constexpr(64)
"""Elements of K in a block of shared memory: 128 bytes, as wide as the swizzle."""
BAND = gl.constexpr(8)
"""Columns of gate, and then of up, that follow each other on the left side."""


@gluon.jit
def copy_weights(
    weight, column, start, weight_ring, ready, slot,
    DEPTH: gl.constexpr, GROUPS: gl.constexpr, LINES: gl.constexpr, PAIR: gl.constexpr,
):  # fmt: skip
    """Begin the copy of DEPTH elements of K of all lines of the tile that begins at `column`."""
    pieces: gl.constexpr = DEPTH // PIECE
    each: gl.constexpr = GROUP_LINES if PAIR else weight.block_type.shape[0]
    copies: gl.constexpr = GROUPS * LINES // each
    mbarrier.expect(ready.index(slot), pieces * copies * weight.block_type.nbytes)
    for piece in gl.static_range(pieces):
        for copy in gl.static_range(copies):
            block = weight_ring.index((slot * pieces + piece) * copies + copy)
            if PAIR:
                band = column // BAND + copy * (GROUP_LINES // (2 * BAND))
                tma.async_copy_global_to_shared(
                    weight, [band, 0, 0, start + piece * PIECE], ready.index(slot), block
                )
            else:
                tma.async_copy_global_to_shared(
                    weight, [column + copy * each, start + piece * PIECE], ready.index(slot), block
                )


@gluon.jit
def copy_x(x, row, start, x_ring, ready, slot, DEPTH: gl.constexpr):
    """Begin the copy of DEPTH elements of K of x."""
    pieces: gl.constexpr = DEPTH // PIECE
    mbarrier.expect(ready.index(slot), pieces * x.block_type.nbytes)
    for piece in gl.static_range(pieces):
        tma.async_copy_global_to_shared(
            x, [row, start + piece * PIECE], ready.index(slot), x_ring.index(slot * pieces + piece)
        )


@gluon.jit
def produce(
    source, rings,
    DEPTH: gl.constexpr, STAGES: gl.constexpr, X_STAGES: gl.constexpr, GROUPS: gl.constexpr, LINES: gl.constexpr,
    PAIR: gl.constexpr, WAIT: gl.constexpr, AHEAD: gl.constexpr, ROW_TILES: gl.constexpr,
):  # fmt: skip
    """Copy both operands' blocks of every tile of this program into the rings. X_STAGES is at most STAGES, of
    which AHEAD are filled with weights before the wait."""
    x, weight, tiles, steps = source
    x_ring, weight_ring, x_ready, weight_ready, free = rings
    width: gl.constexpr = GROUPS * LINES // (2 if PAIR else 1)
    first = gl.program_id(0) // ROW_TILES
    row = gl.program_id(0) % ROW_TILES * x.block_type.shape[0]
    walkers = gl.num_programs(0) // ROW_TILES
    blocks = gl.cdiv(tiles - first, walkers) * steps
    ahead = gl.minimum(blocks, AHEAD)
    for block in range(0, ahead):
        column = (first + block // steps * walkers) * width
        copy_weights(
            weight,
            column,
            block % steps * DEPTH,
            weight_ring,
            weight_ready,
            block,
            DEPTH,
            GROUPS,
            LINES,
            PAIR,
        )
    if WAIT > 0:
        wait_for_the_kernel_ahead()
    for block in range(0, gl.minimum(blocks, X_STAGES)):
        copy_x(x, row, block % steps * DEPTH, x_ring, x_ready, block, DEPTH)
    for block in range(ahead, gl.minimum(blocks, STAGES)):
        column = (first + block // steps * walkers) * width
        copy_weights(
            weight,
            column,
            block % steps * DEPTH,
            weight_ring,
            weight_ready,
            block,
            DEPTH,
            GROUPS,
            LINES,
            PAIR,
        )
    slot = 0
    phase = 0
    x_slot = 0
    for block in range(0, blocks - X_STAGES):
        mbarrier.wait(free.index(slot), phase)
        later = block + X_STAGES
        copy_x(x, row, later % steps * DEPTH, x_ring, x_ready, x_slot, DEPTH)
        later = block + STAGES
        if later < blocks:
            column = (first + later // steps * walkers) * width
            copy_weights(
                weight,
                column,
                later % steps * DEPTH,
                weight_ring,
                weight_ready,
                slot,
                DEPTH,
                GROUPS,
                LINES,
                PAIR,
            )
        slot += 1
        if slot == STAGES:
            slot = 0
            phase = phase ^ 1
        x_slot += 1
        if x_slot == X_STAGES:
            x_slot = 0
    if WAIT == 1:
        dependents_may_start()


@gluon.jit
def chain(
    total, steps, slot, phase, x_slot, x_phase, rings,
    DEPTH: gl.constexpr, STAGES: gl.constexpr, X_STAGES: gl.constexpr, COPIES: gl.constexpr, ALL: gl.constexpr,
    WHICH: gl.constexpr,
):  # fmt: skip
    """The chain over the next `steps` blocks of the rings: (sum, slot, phase, slot of x, its phase). What `total` held
    is dropped. A piece of the ring is ALL blocks of weights, COPIES of them this group's."""
    x_ring, weight_ring, x_ready, weight_ready, free = rings
    pieces: gl.constexpr = DEPTH // PIECE
    for step in range(0, steps):
        mbarrier.wait(weight_ready.index(slot), phase)
        mbarrier.wait(x_ready.index(x_slot), x_phase)
        for piece in gl.static_range(pieces):
            place = (slot * pieces + piece) * ALL + WHICH * COPIES
            left = weight_ring.index(place)._reinterpret(x_ring.dtype, [GROUP_LINES, PIECE], x_ring.layout)
            total = warpgroup_mma(
                left,
                x_ring.index(x_slot * pieces + piece).permute((1, 0)),
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
        x_slot += 1
        if x_slot == X_STAGES:
            x_slot = 0
            x_phase = x_phase ^ 1
    total = warpgroup_mma_wait(0, deps=[total])
    mbarrier.arrive(free.index((slot + STAGES - 1) % STAGES), count=1)
    return total, slot, phase, x_slot, x_phase


@gluon.jit
def tile_sum(
    total, steps, slot, phase, x_slot, x_phase, rings,
    DEPTH: gl.constexpr, STAGES: gl.constexpr, X_STAGES: gl.constexpr, COPIES: gl.constexpr, ALL: gl.constexpr,
    WHICH: gl.constexpr, LEAVES: gl.constexpr,
):  # fmt: skip
    """As `chain`, over LEAVES times `steps` blocks, joined as `gemm_tile.add_leaf` does."""
    empty = gl.full_like(total, -0.0)
    one = empty
    two = empty
    four = empty
    for leaf in range(0, LEAVES):
        total, slot, phase, x_slot, x_phase = chain(
            total, steps, slot, phase, x_slot, x_phase, rings,
            DEPTH, STAGES, X_STAGES, COPIES, ALL, WHICH,
        )  # fmt: skip
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
    return total, slot, phase, x_slot, x_phase


@gluon.jit
def known_here(number):
    """A number whose uses the compiler does not move out of a loop: addresses of a tile's results, computed ahead of
    its sums, would take their registers."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [number], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def store_sums(
    total, out, row_start, column_start, rows, columns,
    ROWS: gl.constexpr, LINES: gl.constexpr, PAIR: gl.constexpr, ACT: gl.constexpr,
):  # fmt: skip
    """Write a group's sums, or what the activation makes of them, from where they lie."""
    if PAIR:
        bands: gl.constexpr = GROUP_LINES // (2 * BAND)
        apart = gl.permute(gl.reshape(total, (bands, 2, BAND, ROWS)), (0, 2, 3, 1))
        gate, up = gl.split(apart)
        value = gl.reshape(gated_tile(gate, up, ACT), (bands * BAND, ROWS)).to(out.dtype.element_ty)
    else:
        value = total.to(out.dtype.element_ty)
    layout: gl.constexpr = value.type.layout
    line = gl.arange(0, value.type.shape[0], gl.SliceLayout(1, layout))
    column = column_start + line
    row = row_start + gl.arange(0, ROWS, gl.SliceLayout(0, layout))
    places = gl.expand_dims(column, 1) + gl.expand_dims(row * columns, 0)
    width: gl.constexpr = LINES // 2 if PAIR else LINES
    inside = gl.expand_dims((line < width) & (column < columns), 1) & gl.expand_dims(row < rows, 0)
    gl.store(out + places, value, mask=inside)


@gluon.jit
def consume(
    goal, rings,
    ROWS: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr, X_STAGES: gl.constexpr, GROUPS: gl.constexpr,
    LINES: gl.constexpr, COPIES: gl.constexpr, PAIR: gl.constexpr, LEAVES: gl.constexpr, ROW_TILES: gl.constexpr,
    WHICH: gl.constexpr,
):  # fmt: skip
    """One group's columns of every tile of this program."""
    out, rows, columns, tiles, steps = goal
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    each: gl.constexpr = LINES // (2 if PAIR else 1)
    slot = 0
    phase = 0
    x_slot = 0
    x_phase = 0
    row = gl.program_id(0) % ROW_TILES * ROWS
    for tile in range(gl.program_id(0) // ROW_TILES, tiles, gl.num_programs(0) // ROW_TILES):
        total = gl.zeros([GROUP_LINES, ROWS], gl.float32, layout)
        total, slot, phase, x_slot, x_phase = tile_sum(
            total, steps // LEAVES, slot, phase, x_slot, x_phase, rings,
            DEPTH, STAGES, X_STAGES, COPIES, GROUPS * COPIES, WHICH, LEAVES,
        )  # fmt: skip
        column = (tile * GROUPS + WHICH) * each
        store_sums(
            total, out, row, column, known_here(rows), known_here(columns), ROWS, LINES, PAIR, rings[0].dtype
        )


@gluon.jit
def wide_gemm(
    x,
    weight,
    out,
    rows,
    column_units,
    depth_units,
    COLUMN_UNIT: gl.constexpr,
    DEPTH_UNIT: gl.constexpr,
    ROWS: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
    X_STAGES: gl.constexpr,
    GROUPS: gl.constexpr,
    LINES: gl.constexpr,
    PAIR: gl.constexpr,
    LEAVES: gl.constexpr,
    WAIT: gl.constexpr,
    AHEAD: gl.constexpr,
    ROW_TILES: gl.constexpr,
    GROUP_REGISTERS: gl.constexpr,
):
    """Grid (programs,), a multiple of ROW_TILES: so many programs in turn have ROWS rows each of the same columns.
    LINES of the 64 on a group's left side are this group's, the others are what lies behind them in shared memory, and
    nobody reads their sums. Of the gated PAIR there are `columns` of the result, and the weight is [columns / 8, 2, 8,
    depth]. A leaf is a whole number of blocks of K. WAIT as in `gemm`."""
    if WAIT == 2:
        dependents_may_start()
    columns = column_units * COLUMN_UNIT
    tiles = gl.cdiv(columns, GROUPS * LINES // (2 if PAIR else 1))
    steps = depth_units * DEPTH_UNIT // DEPTH
    act: gl.constexpr = x.dtype
    pieces: gl.constexpr = DEPTH // PIECE
    COPIES: gl.constexpr = 1 if PAIR else LINES // weight.block_type.shape[0]
    behind: gl.constexpr = 0 if PAIR else (GROUP_LINES - LINES) // weight.block_type.shape[0]
    x_ring = gl.allocate_shared_memory(act, [X_STAGES * pieces, ROWS, PIECE], x.layout)
    weight_ring = gl.allocate_shared_memory(
        act, [STAGES * pieces * GROUPS * COPIES + behind] + weight.block_type.shape, weight.layout
    )
    x_ready = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    weight_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(X_STAGES):
        mbarrier.init(x_ready.index(stage), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(weight_ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=GROUPS)
    fence_async_shared()
    rings = (x_ring, weight_ring, x_ready, weight_ready, free)
    source = (x, weight, tiles, steps)
    goal = (out, rows, columns, tiles, steps)
    if GROUPS == 1:
        gl.warp_specialize(
            [
                (consume, (
                    goal, rings, ROWS, DEPTH, STAGES, X_STAGES, GROUPS, LINES, COPIES, PAIR, LEAVES, ROW_TILES, 0,
                )),
                (produce, (source, rings, DEPTH, STAGES, X_STAGES, GROUPS, LINES, PAIR, WAIT, AHEAD, ROW_TILES)),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip
    elif GROUPS == 2:
        gl.warp_specialize(
            [
                (consume, (
                    goal, rings, ROWS, DEPTH, STAGES, X_STAGES, GROUPS, LINES, COPIES, PAIR, LEAVES, ROW_TILES, 0,
                )),
                (consume, (
                    goal, rings, ROWS, DEPTH, STAGES, X_STAGES, GROUPS, LINES, COPIES, PAIR, LEAVES, ROW_TILES, 1,
                )),
                (produce, (source, rings, DEPTH, STAGES, X_STAGES, GROUPS, LINES, PAIR, WAIT, AHEAD, ROW_TILES)),
            ],
            [4, 1],
            [GROUP_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.static_assert(GROUPS == 3)
        gl.warp_specialize(
            [
                (consume, (
                    goal, rings, ROWS, DEPTH, STAGES, X_STAGES, GROUPS, LINES, COPIES, PAIR, LEAVES, ROW_TILES, 0,
                )),
                (consume, (
                    goal, rings, ROWS, DEPTH, STAGES, X_STAGES, GROUPS, LINES, COPIES, PAIR, LEAVES, ROW_TILES, 1,
                )),
                (consume, (
                    goal, rings, ROWS, DEPTH, STAGES, X_STAGES, GROUPS, LINES, COPIES, PAIR, LEAVES, ROW_TILES, 2,
                )),
                (produce, (source, rings, DEPTH, STAGES, X_STAGES, GROUPS, LINES, PAIR, WAIT, AHEAD, ROW_TILES)),
            ],
            [4, 4, 1],
            [GROUP_REGISTERS, GROUP_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
