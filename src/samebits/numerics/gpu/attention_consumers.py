"""The consumers of `attention_hopper`: what a group of four warps does with the key blocks that the producer copies.

Tiles follow one another without a gap. A block's value product is issued together with the next block's scores, across
tiles too: where a tile begins, the one before it still has its last product, its division and its writes to do.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from samebits.numerics.gpu.attention_gluon import HIDDEN, SUM_LANES, finish, fold, soften

GROUP_ROWS = gl.constexpr(64)
"""Rows of a consumer group: what one warpgroup product computes."""


@gluon.jit
def work_of(begin, tiles, KV_HEADS: gl.constexpr):
    """(tile, key-value head) of this program in the round of programs that begins with work `begin`; the tile is
    `tiles` where there is none. Rounds run to and fro, so that who got the longest tile gets the shortest next."""
    programs = gl.num_programs(0)
    place = gl.program_id(0)
    if begin // programs % 2 == 1:
        place = programs - 1 - place
    work = begin + place
    tile = work // KV_HEADS
    if work >= tiles * KV_HEADS:
        tile = tiles
    return tile, work % KV_HEADS


@gluon.jit
def following(slot, phase, STAGES: gl.constexpr):
    """The place in a ring after this one, and its barriers' phase."""
    slot += 1
    if slot == STAGES:
        slot = 0
        phase = phase ^ 1
    return slot, phase


@gluon.jit
def walk(
    begin,
    end,
    slot,
    phase,
    top,
    total,
    acc,
    split_top,
    lanes,
    split_acc,
    weights,
    position,
    factor,
    q,
    k_ring,
    v_ring,
    k_ready,
    k_free,
    v_ready,
    v_free,
    MASKED: gl.constexpr,
    KEYS: gl.constexpr,
    SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Key blocks begin .. end - 1. `slot` and `phase` name the place of the block before `begin`, whose weights
    are not multiplied by its values yet."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    for block in range(begin, end):
        next_slot, next_phase = following(slot, phase, STAGES)
        first = (block * KEYS) % SPLIT == 0
        mbarrier.wait(k_ready.index(next_slot), next_phase)
        empty = gl.zeros([GROUP_ROWS, KEYS], gl.float32, s_layout)
        scores = warpgroup_mma(
            q, k_ring.index(next_slot).permute((1, 0)), empty, use_acc=False, is_async=True
        )
        begun = ((block - 1) * KEYS) % SPLIT != 0
        product = warpgroup_mma(weights, v_ring.index(slot), split_acc, use_acc=begun, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[scores])
        mbarrier.arrive(k_free.index(next_slot), count=1)
        old_top = split_top
        old_lanes = lanes
        split_top = gl.where(first, HIDDEN, split_top)
        lanes = gl.where(first, 0.0, lanes)
        column = block * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, s_layout))
        visible = gl.expand_dims(column, 0) <= gl.expand_dims(position, 1)
        sharp, split_top, lanes, shrink = soften(scores, split_top, lanes, visible, factor, MASKED, KEYS)
        mbarrier.wait(v_ready.index(next_slot), next_phase)
        split_acc, sharp, shrink = warpgroup_mma_wait(0, deps=[product, sharp, shrink])
        mbarrier.arrive(v_free.index(slot), count=1)
        if first:
            top, total, acc = fold(top, total, acc, old_top, old_lanes, split_acc, factor)
        else:
            wide = gl.convert_layout(shrink, gl.SliceLayout(1, split_acc.type.layout))
            split_acc = split_acc * gl.expand_dims(wide, 1)
        weights = gl.convert_layout(sharp.to(weights.dtype), weights.type.layout)
        slot = next_slot
        phase = next_phase
    return slot, phase, top, total, acc, split_top, lanes, split_acc, weights


@gluon.jit
def tile_rows(begin, tiles, tile_first, tile_count, KV_HEADS: gl.constexpr):
    """(key-value head, first batch row, number of rows) of this program's tile in a round; no rows where there is no
    tile."""
    tile, kv_head = work_of(begin, tiles, KV_HEADS)
    known = tile < tiles
    first = gl.load(tile_first + tile, mask=known, other=0)
    count = gl.load(tile_count + tile, mask=known, other=0)
    return kv_head, first, count


@gluon.jit
def tile_positions(positions, first, count, rows, KEYS: gl.constexpr):
    """Of a tile: (its last position, the key blocks that need no mask, the positions of its tokens `rows`), int32. A
    position is -1 where there is no row. The first block counts as one of those that need none."""
    exists = count > 0
    lowest = gl.load(positions + first, mask=exists, other=-1).to(gl.int32)
    last = gl.load(positions + first + count - 1, mask=exists, other=-1).to(gl.int32)
    own = gl.load(positions + first + rows, mask=rows < count, other=-1).to(gl.int32)
    blocks = last // KEYS + 1
    unmasked = gl.minimum(gl.maximum((lowest + 1) // KEYS, 1), blocks)
    return last, unmasked, own


@gluon.jit
def write_rows(
    output, total, acc, first, count, kv_head,
    WHICH: gl.constexpr, QUERY_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Divide a group's finished rows by their sums and write those that exist."""
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    result = gl.convert_layout(finish(total, acc).to(output.dtype.element_ty), flat)
    offsets, wanted = group_places(first, count, kv_head, WHICH, group, QUERY_HEADS, D, flat)
    gl.store(output + offsets, result, mask=wanted)


@gluon.jit
def group_places(
    first, count, kv_head,
    WHICH: gl.constexpr, GROUP: gl.constexpr, QUERY_HEADS: gl.constexpr, D: gl.constexpr, FLAT: gl.constexpr,
):  # fmt: skip
    """(places in a tensor [rows, QUERY_HEADS, D], whether they exist) of a group's elements [GROUP_ROWS, D]."""
    rows = WHICH * GROUP_ROWS + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, FLAT))
    heads = kv_head * GROUP + rows % GROUP
    places = ((first + rows // GROUP).to(gl.int64) * QUERY_HEADS + heads) * D
    columns = gl.arange(0, D, gl.SliceLayout(0, FLAT))
    offsets = gl.expand_dims(places, 1) + gl.expand_dims(columns, 0)
    wanted = gl.expand_dims(rows // GROUP < count, 1) & gl.expand_dims(columns >= 0, 0)
    return offsets, wanted


@gluon.jit
def consume(
    queries,
    output,
    positions,
    tile_first,
    tile_count,
    tiles,
    factor,
    q_ring,
    k_ring,
    v_ring,
    q_ready,
    q_free,
    k_ready,
    k_free,
    v_ready,
    v_free,
    WHICH: gl.constexpr,
    COPIED: gl.constexpr,
    QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    D: gl.constexpr,
    KEYS: gl.constexpr,
    SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The rows WHICH * GROUP_ROWS .. of every tile of this program.

    Tiles follow one another without a gap: a tile's last value product, its division and its writes stand where the
    next tile's first scores are computed, and what must be read about the next tile is on its way in time."""
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    a_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, a_layout, 2)
    l_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SUM_LANES, 16])
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    tokens = (WHICH * GROUP_ROWS + gl.arange(0, GROUP_ROWS, s_rows)) // group
    column = gl.arange(0, KEYS, gl.SliceLayout(0, s_layout))
    # The place of the block whose weights wait for its values: none yet, and the ring begins behind it.
    slot = STAGES - 1
    phase = 1
    q_slot = 0
    q_phase = 0
    top = gl.full([GROUP_ROWS], HIDDEN, gl.float32, s_rows)
    total = gl.zeros([GROUP_ROWS], gl.float32, s_rows)
    acc = gl.zeros([GROUP_ROWS, D], gl.float32, a_layout)
    split_top = gl.full([GROUP_ROWS], HIDDEN, gl.float32, s_rows)
    lanes = gl.zeros([GROUP_ROWS, SUM_LANES], gl.float32, l_layout)
    split_acc = gl.zeros([GROUP_ROWS, D], gl.float32, a_layout)
    weights = gl.zeros([GROUP_ROWS, KEYS], k_ring.dtype, p_layout)
    # The tile whose last block that is.
    old_head = 0
    old_first = 0
    old_count = 0
    old_blocks = 1
    programs = gl.num_programs(0)
    kv_head, first, count = tile_rows(0, tiles, tile_first, tile_count, KV_HEADS)
    next_head, next_first, next_count = tile_rows(programs, tiles, tile_first, tile_count, KV_HEADS)
    last, unmasked, position = tile_positions(positions, first, count, tokens, KEYS)
    for begin in range(0, tiles * KV_HEADS, programs):
        next_last, next_unmasked, next_position = tile_positions(
            positions, next_first, next_count, tokens, KEYS
        )
        later_head, later_first, later_count = tile_rows(
            begin + 2 * programs, tiles, tile_first, tile_count, KV_HEADS
        )
        if count > 0:
            if COPIED:
                q_shared = q_ring.index(2 * q_slot + WHICH).reshape([GROUP_ROWS, D])
                mbarrier.wait(q_ready.index(q_slot), q_phase)
            else:
                q_shared = q_ring.index(WHICH)
                offsets, wanted = group_places(first, count, kv_head, WHICH, group, QUERY_HEADS, D, flat)
                q_shared.store(gl.load(queries + offsets, mask=wanted, other=0.0))
                fence_async_shared()
                gl.thread_barrier()
            next_slot, next_phase = following(slot, phase, STAGES)
            mbarrier.wait(k_ready.index(next_slot), next_phase)
            empty = gl.zeros([GROUP_ROWS, KEYS], gl.float32, s_layout)
            # In registers, for a product of 64 columns that reads both its sides from shared memory is bound by that.
            q = q_shared.load(gl.DotOperandLayout(0, s_layout, 2))
            scores = warpgroup_mma(
                q, k_ring.index(next_slot).permute((1, 0)), empty, use_acc=False, is_async=True
            )
            begun = ((old_blocks - 1) * KEYS) % SPLIT != 0
            product = warpgroup_mma(weights, v_ring.index(slot), split_acc, use_acc=begun, is_async=True)
            scores = warpgroup_mma_wait(1, deps=[scores])
            # There is always such a block. The compiler drops what a loop carries to bound an inner loop alone, and
            # goes on with the first tile's: here it is seen to be needed.
            mbarrier.arrive(k_free.index(next_slot), count=1, pred=unmasked > 0)
            old_top = split_top
            old_lanes = lanes
            split_top = gl.full([GROUP_ROWS], HIDDEN, gl.float32, s_rows)
            lanes = gl.zeros([GROUP_ROWS, SUM_LANES], gl.float32, l_layout)
            visible = gl.expand_dims(column, 0) <= gl.expand_dims(position, 1)
            sharp, split_top, lanes, shrink = soften(scores, split_top, lanes, visible, factor, True, KEYS)
            mbarrier.wait(v_ready.index(next_slot), next_phase)
            split_acc, sharp, shrink = warpgroup_mma_wait(0, deps=[product, sharp, shrink])
            mbarrier.arrive(v_free.index(slot), count=1, pred=old_count > 0)
            top, total, acc = fold(top, total, acc, old_top, old_lanes, split_acc, factor)
            weights = gl.convert_layout(sharp.to(weights.dtype), p_layout)
            write_rows(output, total, acc, old_first, old_count, old_head, WHICH, QUERY_HEADS, KV_HEADS, D)
            top = gl.full([GROUP_ROWS], HIDDEN, gl.float32, s_rows)
            total = gl.zeros([GROUP_ROWS], gl.float32, s_rows)
            acc = gl.zeros([GROUP_ROWS, D], gl.float32, a_layout)
            slot = next_slot
            phase = next_phase

            blocks = last // KEYS + 1
            slot, phase, top, total, acc, split_top, lanes, split_acc, weights = walk(
                1, unmasked, slot, phase, top, total, acc, split_top, lanes, split_acc, weights, position,
                factor, q, k_ring, v_ring, k_ready, k_free, v_ready, v_free,
                False, KEYS, SPLIT, STAGES,
            )  # fmt: skip
            slot, phase, top, total, acc, split_top, lanes, split_acc, weights = walk(
                unmasked, blocks, slot, phase, top, total, acc, split_top, lanes, split_acc, weights, position,
                factor, q, k_ring, v_ring, k_ready, k_free, v_ready, v_free,
                True, KEYS, SPLIT, STAGES,
            )  # fmt: skip

            if COPIED:
                mbarrier.arrive(q_free.index(q_slot), count=1)
                q_phase = q_phase ^ q_slot
                q_slot = q_slot ^ 1
            if (last + 1) % KEYS != 0:
                v = v_ring.index(slot).load(flat)
                key = (blocks - 1) * KEYS + gl.arange(0, KEYS, gl.SliceLayout(1, flat))
                v_ring.index(slot).store(gl.where(gl.expand_dims(key <= last, 1), v, gl.zeros_like(v)))
                fence_async_shared()
                gl.thread_barrier()
            old_head = kv_head
            old_first = first
            old_count = count
            old_blocks = blocks
        kv_head, first, count = next_head, next_first, next_count
        last, unmasked, position = next_last, next_unmasked, next_position
        next_head, next_first, next_count = later_head, later_first, later_count
    begun = ((old_blocks - 1) * KEYS) % SPLIT != 0
    product = warpgroup_mma(weights, v_ring.index(slot), split_acc, use_acc=begun, is_async=True)
    split_acc = warpgroup_mma_wait(0, deps=[product])
    top, total, acc = fold(top, total, acc, split_top, lanes, split_acc, factor)
    write_rows(output, total, acc, old_first, old_count, old_head, WHICH, QUERY_HEADS, KV_HEADS, D)
