"""The GEMM clause for many rows on Hopper (sm_90): one warp copies blocks of K, groups of four warps multiply them.

Written in Gluon, Triton's language below Triton: layouts, copies, barriers and tensor-core products in flight are
named here, not inferred. What a tile's sum is, a chain or a tree of leaves, is said in `gemm_tile`.

A program walks tiles of GROUPS * GROUP_ROWS rows, one or two groups. Its producer warp copies blocks of x and weight
into a ring of shared memory, on into the next tile; each consumer group owns GROUP_ROWS rows with its sums in
registers. The groups meet at the ring only: while one takes in a leaf or writes its result, the other keeps the tensor
cores.
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

GROUP_ROWS = gl.constexpr(64)
"""Rows of a consumer group: what one warpgroup product computes."""


@gluon.jit
def tile_place(tile, row_tiles, column_tiles, GROUP: gl.constexpr):
    """As `gemm_tile.grouped_tile`."""
    per_group = GROUP * column_tiles
    first = tile // per_group * GROUP
    height = gl.minimum(row_tiles - first, GROUP)
    return first + tile % per_group % height, tile % per_group // height


@gluon.jit
def copy_x(x, row_start, start, x_ring, ready, slot, GROUPS: gl.constexpr):
    """Begin the copy of a block of x for each group."""
    for which in gl.static_range(GROUPS):
        tma.async_copy_global_to_shared(
            x, [row_start + which * GROUP_ROWS, start], ready.index(slot), x_ring.index(GROUPS * slot + which)
        )


@gluon.jit
def produce(
    x, weight, rows, columns, depth, x_ring, weight_ring, ready, free,
    COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, GROUPS: gl.constexpr,
):  # fmt: skip
    """Copy both operands' blocks of every tile of this program into the rings."""
    row_tiles = gl.cdiv(rows, GROUPS * GROUP_ROWS)
    column_tiles = gl.cdiv(columns, COLUMNS)
    slot = 0
    phase = 1
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        row_tile, column_tile = tile_place(tile, row_tiles, column_tiles, GROUP)
        row_start = row_tile * (GROUPS * GROUP_ROWS)
        column_start = column_tile * COLUMNS
        for start in range(0, depth, DEPTH):
            mbarrier.wait(free.index(slot), phase)
            mbarrier.expect(ready.index(slot), GROUPS * x.block_type.nbytes + weight.block_type.nbytes)
            copy_x(x, row_start, start, x_ring, ready, slot, GROUPS)
            tma.async_copy_global_to_shared(
                weight, [column_start, start], ready.index(slot), weight_ring.index(slot)
            )
            slot += 1
            if slot == STAGES:
                slot = 0
                phase = phase ^ 1


@gluon.jit
def chain(
    total, steps, slot, phase, left_ring, right_ring, ready, free,
    STAGES: gl.constexpr, GROUPS: gl.constexpr, WHICH: gl.constexpr,
):  # fmt: skip
    """The chain over the next `steps` blocks of the ring: (sum, slot, phase). What `total` held is dropped.

    A slot holds a left operand for each of GROUPS groups, and a right one for all."""
    for step in range(0, steps):
        mbarrier.wait(ready.index(slot), phase)
        total = warpgroup_mma(
            left_ring.index(GROUPS * slot + WHICH), right_ring.index(slot).permute((1, 0)), total,
            use_acc=step > 0, is_async=True,
        )  # fmt: skip
        total = warpgroup_mma_wait(1, deps=[total])
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
def tree(
    total, steps, slot, phase, left_ring, right_ring, ready, free, parked,
    STAGES: gl.constexpr, GROUPS: gl.constexpr, WHICH: gl.constexpr, LEAVES: gl.constexpr, PARK: gl.constexpr,
):  # fmt: skip
    """The balanced tree over LEAVES chains of `steps` blocks each: (sum, slot, phase), as `gemm_tile.add_leaf`.

    With PARK the sum of the first four of eight leaves waits in shared memory, where the registers do not hold four
    sums of a tile."""
    empty = gl.full_like(total, -0.0)
    one = empty
    two = empty
    four = empty
    for leaf in range(0, LEAVES):
        total, slot, phase = chain(
            total, steps, slot, phase, left_ring, right_ring, ready, free, STAGES, GROUPS, WHICH
        )
        one = one + total
        if LEAVES > 2:
            if leaf % 2 == 1:
                two = two + one
                one = empty
                if LEAVES > 4:
                    if leaf == 3:
                        if PARK:
                            parked.store(two)
                        else:
                            four = two
                        two = empty
    if LEAVES == 2:
        total = one
    elif LEAVES == 4:
        total = two
    elif PARK:
        total = parked.load(two.type.layout) + two
    else:
        total = four + two
    return total, slot, phase


@gluon.jit
def tile_sum(
    total, steps, slot, phase, left_ring, right_ring, ready, free, parked,
    STAGES: gl.constexpr, GROUPS: gl.constexpr, WHICH: gl.constexpr, LEAVES: gl.constexpr, PARK: gl.constexpr,
):  # fmt: skip
    """A tile's sum over LEAVES times `steps` blocks: (sum, slot, phase)."""
    if LEAVES == 1:
        return chain(total, steps, slot, phase, left_ring, right_ring, ready, free, STAGES, GROUPS, WHICH)
    else:
        return tree(
            total, steps, slot, phase, left_ring, right_ring, ready, free, parked,
            STAGES, GROUPS, WHICH, LEAVES, PARK,
        )  # fmt: skip


@gluon.jit
def consume(
    out, rows, columns, depth, x_ring, weight_ring, ready, free, parked,
    COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, LEAVES: gl.constexpr,
    GROUPS: gl.constexpr, WHICH: gl.constexpr,
):  # fmt: skip
    """The rows WHICH * GROUP_ROWS .. of every tile of this program."""
    row_tiles = gl.cdiv(rows, GROUPS * GROUP_ROWS)
    column_tiles = gl.cdiv(columns, COLUMNS)
    steps = depth // (LEAVES * DEPTH)
    slot = 0
    phase = 0
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        total = gl.zeros(
            [GROUP_ROWS, COLUMNS], gl.float32, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
        )
        total, slot, phase = tile_sum(
            total, steps, slot, phase, x_ring, weight_ring, ready, free, parked,
            STAGES, GROUPS, WHICH, LEAVES, True,
        )  # fmt: skip
        row_tile, column_tile = tile_place(tile, row_tiles, column_tiles, GROUP)
        rounded = total.to(out.dtype.element_ty)
        if out.dtype.element_ty.primitive_bitwidth == 16:
            flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // COLUMNS, COLUMNS // 8], [4, 1], [1, 0])
            rounded = gl.convert_layout(rounded, flat)
        layout: gl.constexpr = rounded.type.layout
        row = (
            row_tile * (GROUPS * GROUP_ROWS)
            + WHICH * GROUP_ROWS
            + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, layout))
        )
        column = column_tile * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
        inside = gl.expand_dims(row < rows, 1) & gl.expand_dims(column < columns, 0)
        places = gl.expand_dims(row.to(gl.int64) * columns, 1) + gl.expand_dims(column, 0)
        gl.store(out + places, rounded, mask=inside)


@gluon.jit
def hopper_gemm(
    x,
    weight,
    out,
    rows,
    column_units,
    depth_units,
    COLUMN_UNIT: gl.constexpr,
    DEPTH_UNIT: gl.constexpr,
    COLUMNS: gl.constexpr,
    DEPTH: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    LEAVES: gl.constexpr,
    GROUPS: gl.constexpr,
):
    """Grid (programs,), any number. A leaf is a whole number of blocks of K."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    act: gl.constexpr = x.dtype
    x_ring = gl.allocate_shared_memory(act, [GROUPS * STAGES, GROUP_ROWS, DEPTH], x.layout)
    weight_ring = gl.allocate_shared_memory(act, [STAGES, COLUMNS, DEPTH], weight.layout)
    wide: gl.constexpr = COLUMNS if LEAVES == 8 else 8
    # A thread holds pairs, and a warp's store covers eight rows of four pairs: swizzled, no two meet in a bank.
    apart: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    parked = gl.allocate_shared_memory(gl.float32, [GROUPS, GROUP_ROWS, wide], apart)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=GROUPS)
    fence_async_shared()
    if GROUPS == 1:
        gl.warp_specialize(
            [
                (consume, (
                    out, rows, columns, depth, x_ring, weight_ring, ready, free, parked.index(0),
                    COLUMNS, DEPTH, GROUP, STAGES, LEAVES, GROUPS, 0,
                )),
                (produce, (
                    x, weight, rows, columns, depth, x_ring, weight_ring, ready, free,
                    COLUMNS, DEPTH, GROUP, STAGES, GROUPS,
                )),
            ],
            [1],
            [40],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (consume, (
                    out, rows, columns, depth, x_ring, weight_ring, ready, free, parked.index(0),
                    COLUMNS, DEPTH, GROUP, STAGES, LEAVES, GROUPS, 0,
                )),
                (consume, (
                    out, rows, columns, depth, x_ring, weight_ring, ready, free, parked.index(1),
                    COLUMNS, DEPTH, GROUP, STAGES, LEAVES, GROUPS, 1,
                )),
                (produce, (
                    x, weight, rows, columns, depth, x_ring, weight_ring, ready, free,
                    COLUMNS, DEPTH, GROUP, STAGES, GROUPS,
                )),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip
