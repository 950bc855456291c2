"""Row-parallel products for many rows on Hopper (sm_90) whose results go to the ranks that will add them.

As `gemm_hopper`, with another end: the rows are dealt out to the ranks in equal shares, and a tile's sums are written
into the memory of the rank that owns the row. They travel while the next tiles are computed, and what is left of a sum
over ranks is to add what lies in this rank's own memory.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from samebits.numerics.gpu.gemm_hopper import GROUP_ROWS, copy_x, tile_place, tile_sum


@gluon.jit
def dealt_place(
    tile, row_tiles, column_tiles, share_rows, rank, GROUP: gl.constexpr, GROUPS: gl.constexpr, TURNS: gl.constexpr
):  # fmt: skip
    """As `tile_place`, from the rows of the next rank on. TURNS: rows of all ranks in turn, so that what travels is
    spread over the whole product; shares that are no whole number of tiles, and all of them without it, come one after
    the other."""
    row_tile, column_tile = tile_place(tile, row_tiles, column_tiles, GROUP)
    dealt = (row_tile + (rank + 1) * share_rows // (GROUPS * GROUP_ROWS)) % row_tiles
    if TURNS:
        if share_rows % (GROUPS * GROUP_ROWS) == 0:
            share_tiles = share_rows // (GROUPS * GROUP_ROWS)
            ranks = row_tiles // share_tiles
            dealt = (row_tile + rank + 1) % ranks * share_tiles + row_tile // ranks
    return dealt, column_tile


@gluon.jit
def produce(
    x, weight, rows, columns, depth, share_rows, rank, x_ring, weight_ring, ready, free,
    COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, GROUPS: gl.constexpr,
    TURNS: gl.constexpr,
):  # fmt: skip
    """Copy both operands' blocks of every tile of this program into the rings."""
    row_tiles = gl.cdiv(rows, GROUPS * GROUP_ROWS)
    column_tiles = gl.cdiv(columns, COLUMNS)
    slot = 0
    phase = 1
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        row_tile, column_tile = dealt_place(
            tile, row_tiles, column_tiles, share_rows, rank, GROUP, GROUPS, TURNS
        )
        for start in range(0, depth, DEPTH):
            mbarrier.wait(free.index(slot), phase)
            mbarrier.expect(ready.index(slot), GROUPS * x.block_type.nbytes + weight.block_type.nbytes)
            copy_x(x, row_tile * (GROUPS * GROUP_ROWS), start, x_ring, ready, slot, GROUPS)
            tma.async_copy_global_to_shared(
                weight, [column_tile * COLUMNS, start], ready.index(slot), weight_ring.index(slot)
            )
            slot += 1
            if slot == STAGES:
                slot = 0
                phase = phase ^ 1


@gluon.jit
def consume(
    peers, rows, columns, depth, share_rows, rank, x_ring, weight_ring, ready, free,
    COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, LEAVES: gl.constexpr,
    GROUPS: gl.constexpr, FLAT: gl.constexpr, TURNS: gl.constexpr, WHICH: gl.constexpr,
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
            total, steps, slot, phase, x_ring, weight_ring, ready, free, ready, STAGES, GROUPS, WHICH, LEAVES, False,
        )  # fmt: skip
        row_tile, column_tile = dealt_place(
            tile, row_tiles, column_tiles, share_rows, rank, GROUP, GROUPS, TURNS
        )
        if FLAT:  # whole lines travel better than a product's layout of eight bytes a thread
            flat: gl.constexpr = gl.BlockedLayout([1, 4], [128 // COLUMNS, COLUMNS // 4], [4, 1], [1, 0])
            total = gl.convert_layout(total, flat)
        layout: gl.constexpr = total.type.layout
        row = (
            row_tile * (GROUPS * GROUP_ROWS)
            + WHICH * GROUP_ROWS
            + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, layout))
        )
        column = column_tile * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
        owner = row // share_rows
        # The owner keeps the shares of all ranks in rank order.
        place = ((rank - owner) * share_rows + row).to(gl.int64) * columns
        memory = gl.load(peers + owner, mask=row < rows, other=0).to(gl.pointer_type(gl.float32))
        begin = gl.multiple_of(memory + place, 16)
        inside = gl.expand_dims(row < rows, 1) & gl.expand_dims(column < columns, 0)
        gl.store(gl.expand_dims(begin, 1) + gl.expand_dims(column, 0), total, mask=inside)


@gluon.jit
def pushed_gemm(
    x,
    weight,
    peers,
    rows,
    column_units,
    depth_units,
    share_rows,
    rank,
    COLUMN_UNIT: gl.constexpr,
    DEPTH_UNIT: gl.constexpr,
    COLUMNS: gl.constexpr,
    DEPTH: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    LEAVES: gl.constexpr,
    GROUPS: gl.constexpr,
    FLAT: gl.constexpr,
    TURNS: gl.constexpr,
):
    """Grid (programs,), any number. Row r is owned by rank r // share_rows, whose memory float32 [ranks, share_rows,
    columns] begins at peers[owner]; this rank writes to place `rank` of each. At most four leaves."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    act: gl.constexpr = x.dtype
    x_ring = gl.allocate_shared_memory(act, [GROUPS * STAGES, GROUP_ROWS, DEPTH], x.layout)
    weight_ring = gl.allocate_shared_memory(act, [STAGES, COLUMNS, DEPTH], weight.layout)
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
                    peers, rows, columns, depth, share_rows, rank, x_ring, weight_ring, ready, free,
                    COLUMNS, DEPTH, GROUP, STAGES, LEAVES, GROUPS, FLAT, TURNS, 0,
                )),
                (produce, (
                    x, weight, rows, columns, depth, share_rows, rank, x_ring, weight_ring, ready, free,
                    COLUMNS, DEPTH, GROUP, STAGES, GROUPS, TURNS,
                )),
            ],
            [1],
            [40],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (consume, (
                    peers, rows, columns, depth, share_rows, rank, x_ring, weight_ring, ready, free,
                    COLUMNS, DEPTH, GROUP, STAGES, LEAVES, GROUPS, FLAT, TURNS, 0,
                )),
                (consume, (
                    peers, rows, columns, depth, share_rows, rank, x_ring, weight_ring, ready, free,
                    COLUMNS, DEPTH, GROUP, STAGES, LEAVES, GROUPS, FLAT, TURNS, 1,
                )),
                (produce, (
                    x, weight, rows, columns, depth, share_rows, rank, x_ring, weight_ring, ready, free,
                    COLUMNS, DEPTH, GROUP, STAGES, GROUPS, TURNS,
                )),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip
