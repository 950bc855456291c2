"""Attention of whole tiles for Hopper (sm_90): one warp copies key blocks, two groups of four warps consume them.

Written in Gluon, Triton's language below Triton: layouts, copies, barriers and tensor-core products in flight are
named here, not inferred. What is computed for one row is the clause, block by block, as in `attention_core`.

A program walks tiles of 2 * GROUP_ROWS rows. Its producer warp copies keys and values of one key block after another
into a ring of shared memory; each consumer group owns GROUP_ROWS rows, with its own state in registers. What a consumer
multiplies in one turn lies in one place of the ring, so that it waits once and gives back once: the values of a key
block and the keys of the next one. A turn's exponentials run beside the value product of the block before, and the
scores of the block behind are computed while the accumulator is weighted or folded.
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

from samebits.numerics.gpu.attention_gluon import HIDDEN, SUM_LANES, finish, fold, soften
from samebits.numerics.gpu.dependent_gluon import dependents_may_start, wait_for_the_kernel_ahead

GROUP_ROWS = gl.constexpr(64)
"""Rows of a consumer group: what one warpgroup product computes."""


@gluon.jit
def wait_ahead(DEPENDENT: gl.constexpr):
    """See `dependent.wait_ahead`."""
    dependents_may_start(DEPENDENT)
    wait_for_the_kernel_ahead(DEPENDENT)


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
def produce(
    queries,
    keys,
    values,
    positions,
    tile_first,
    tile_count,
    tile_request,
    page_table,
    table_width,
    tiles,
    q_ring,
    k_ring,
    v_ring,
    q_ready,
    q_free,
    ready,
    free,
    COPIED: gl.constexpr,
    QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy the queries, with COPIED, and the key blocks of every tile of this program into the rings. A tile's first
    place holds keys alone, its last one values. Behind the last tile a place without copies is ready, since consumers
    wait a place ahead."""
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    slot = 0
    phase = 1
    q_slot = 0
    q_phase = 1
    for begin in range(0, tiles * KV_HEADS, gl.num_programs(0)):
        tile, kv_head = work_of(begin, tiles, KV_HEADS)
        count = gl.load(tile_count + tile, mask=tile < tiles, other=0)
        if count > 0:
            request = gl.load(tile_request + tile)
            first = gl.load(tile_first + tile)
            last = gl.load(positions + first + count - 1).to(gl.int32)
            if COPIED:
                mbarrier.wait(q_free.index(q_slot), q_phase)
                mbarrier.expect(q_ready.index(q_slot), 2 * queries.block_type.nbytes)
                for which in gl.static_range(2):
                    row = first + which * (GROUP_ROWS // group)
                    place = q_ring.index(2 * q_slot + which)
                    tma.async_copy_global_to_shared(
                        queries, [row, kv_head * group, 0], q_ready.index(q_slot), place
                    )
                q_phase = q_phase ^ q_slot
                q_slot = q_slot ^ 1
            pages = page_table + request.to(gl.int64) * table_width
            page = gl.load(pages)
            row = (page * KV_HEADS + kv_head) * PAGE
            mbarrier.wait(free.index(slot), phase)
            mbarrier.expect(ready.index(slot), keys.block_type.nbytes)
            tma.async_copy_global_to_shared(keys, [row, 0], ready.index(slot), k_ring.index(slot))
            slot, phase = following(slot, phase, STAGES)
            for key in range(KEYS, last + 1, KEYS):
                page = gl.load(pages + key // PAGE)
                next_row = (page * KV_HEADS + kv_head) * PAGE + key % PAGE
                mbarrier.wait(free.index(slot), phase)
                mbarrier.expect(ready.index(slot), keys.block_type.nbytes + values.block_type.nbytes)
                tma.async_copy_global_to_shared(keys, [next_row, 0], ready.index(slot), k_ring.index(slot))
                tma.async_copy_global_to_shared(values, [row, 0], ready.index(slot), v_ring.index(slot))
                row = next_row
                slot, phase = following(slot, phase, STAGES)
            mbarrier.wait(free.index(slot), phase)
            mbarrier.expect(ready.index(slot), values.block_type.nbytes)
            tma.async_copy_global_to_shared(values, [row, 0], ready.index(slot), v_ring.index(slot))
            slot, phase = following(slot, phase, STAGES)
    mbarrier.wait(free.index(slot), phase)
    mbarrier.arrive(ready.index(slot), count=1)


@gluon.jit
def soften_block(
    block,
    scores,
    split_top,
    lanes,
    position,
    factor,
    MASKED: gl.constexpr,
    KEYS: gl.constexpr,
    SPLIT: gl.constexpr,
):
    """`soften` of key block `block`; a split's first one begins from the empty state."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    first = (block * KEYS) % SPLIT == 0
    split_top = gl.where(first, HIDDEN, split_top)
    lanes = gl.where(first, 0.0, lanes)
    column = block * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, s_layout))
    visible = gl.expand_dims(column, 0) <= gl.expand_dims(position, 1)
    return soften(scores, split_top, lanes, visible, factor, MASKED, KEYS)


@gluon.jit
def ask_scores(q, keys, KEYS: gl.constexpr):
    """Begin the scores of one key block for a group's queries: both lie in shared memory."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    empty = gl.zeros([GROUP_ROWS, KEYS], gl.float32, s_layout)
    return warpgroup_mma(q, keys.permute((1, 0)), empty, use_acc=False, is_async=True)


@gluon.jit
def walk(
    begin,
    end,
    behind,
    slot,
    phase,
    scores,
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
    ready,
    free,
    MASKED: gl.constexpr,
    KEYS: gl.constexpr,
    SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Key blocks begin .. end - 1. `scores` are those of block `begin`; `weights`, of the block before it, are to be
    multiplied by the values at `behind`. The next place, `slot`, has been waited for. No product is in flight from one
    turn to the next, for the assembler would make all of them wait for each other. Behind a tile's last block scores
    are computed of whatever the place holds for keys, and never looked at."""
    for block in range(begin, end):
        begun = ((block - 1) * KEYS) % SPLIT != 0
        product = warpgroup_mma(weights, v_ring.index(behind), split_acc, use_acc=begun, is_async=True)
        # They are there. This keeps their first use behind the product's issue.
        scores = warpgroup_mma_wait(1, deps=[scores])
        old_top = split_top
        old_lanes = lanes
        sharp, split_top, lanes, shrink = soften_block(
            block, scores, split_top, lanes, position, factor, MASKED, KEYS, SPLIT
        )
        # Rounded ahead of the next scores, which take the registers.
        sharp = gl.convert_layout(sharp.to(weights.dtype), weights.type.layout)
        asked = ask_scores(q, k_ring.index(slot), KEYS)
        split_acc, sharp, shrink = warpgroup_mma_wait(1, deps=[product, sharp, shrink])
        mbarrier.arrive(free.index(behind), count=1)
        gl.thread_barrier()  # here, where the warps have just met: the compiler would put one where they have not
        behind = slot
        slot, phase = following(slot, phase, STAGES)
        mbarrier.wait(ready.index(slot), phase)
        if (block * KEYS) % SPLIT == 0:
            top, total, acc = fold(top, total, acc, old_top, old_lanes, split_acc, factor)
        else:
            wide = gl.convert_layout(shrink, gl.SliceLayout(1, split_acc.type.layout))
            split_acc = split_acc * gl.expand_dims(wide, 1)
        weights = sharp
        scores = warpgroup_mma_wait(0, deps=[asked])
    return behind, slot, phase, scores, top, total, acc, split_top, lanes, split_acc, weights


@gluon.jit
def places_of(
    first,
    count,
    kv_head,
    WHICH: gl.constexpr,
    GROUP: gl.constexpr,
    QUERY_HEADS: gl.constexpr,
    D: gl.constexpr,
):
    """Where the rows of consumer group WHICH lie in queries and output, and which of them exist. Fewer than 2^31
    elements lie there."""
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    rows = WHICH * GROUP_ROWS + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, flat))
    places = ((first + rows // GROUP) * QUERY_HEADS + kv_head * GROUP + rows % GROUP) * D
    columns = gl.arange(0, D, gl.SliceLayout(0, flat))
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
    ready,
    free,
    WHICH: gl.constexpr,
    COPIED: gl.constexpr,
    QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    D: gl.constexpr,
    KEYS: gl.constexpr,
    SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The rows WHICH * GROUP_ROWS .. of every tile of this program."""
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    a_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, a_layout, 2)
    l_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SUM_LANES, 16])
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    slot = 0
    phase = 0
    q_slot = 0
    q_phase = 0
    mbarrier.wait(ready.index(slot), phase)
    for begin in range(0, tiles * KV_HEADS, gl.num_programs(0)):
        tile, kv_head = work_of(begin, tiles, KV_HEADS)
        count = gl.load(tile_count + tile, mask=tile < tiles, other=0)
        first = gl.load(tile_first + tile, mask=tile < tiles, other=0)
        if count > 0:
            lowest = gl.load(positions + first).to(gl.int32)
            last = gl.load(positions + first + count - 1).to(gl.int32)
            if COPIED:
                q_shared = q_ring.index(2 * q_slot + WHICH).reshape([GROUP_ROWS, D])
            else:
                q_shared = q_ring.index(WHICH)
                offsets, wanted = places_of(first, count, kv_head, WHICH, group, QUERY_HEADS, D)
                q_shared.store(gl.load(queries + offsets, mask=wanted, other=0.0))
                fence_async_shared()
                gl.thread_barrier()
            tokens = (WHICH * GROUP_ROWS + gl.arange(0, GROUP_ROWS, s_rows)) // group
            position = gl.load(positions + first + tokens, mask=tokens < count, other=-1).to(gl.int32)

            top = gl.full([GROUP_ROWS], HIDDEN, gl.float32, s_rows)
            total = gl.zeros([GROUP_ROWS], gl.float32, s_rows)
            acc = gl.zeros([GROUP_ROWS, D], gl.float32, a_layout)
            split_top = gl.full([GROUP_ROWS], HIDDEN, gl.float32, s_rows)
            lanes = gl.zeros([GROUP_ROWS, SUM_LANES], gl.float32, l_layout)
            split_acc = gl.zeros([GROUP_ROWS, D], gl.float32, a_layout)

            if COPIED:
                mbarrier.wait(q_ready.index(q_slot), q_phase)
            scores = warpgroup_mma_wait(0, deps=[ask_scores(q_shared, k_ring.index(slot), KEYS)])
            mbarrier.arrive(free.index(slot), count=1)
            slot, phase = following(slot, phase, STAGES)
            mbarrier.wait(ready.index(slot), phase)
            asked = ask_scores(q_shared, k_ring.index(slot), KEYS)
            if lowest + 1 >= KEYS:
                sharp, split_top, lanes, _shrink = soften_block(
                    0, scores, split_top, lanes, position, factor, False, KEYS, SPLIT
                )
            else:
                sharp, split_top, lanes, _shrink = soften_block(
                    0, scores, split_top, lanes, position, factor, True, KEYS, SPLIT
                )
            weights = gl.convert_layout(sharp.to(q_shared.dtype), p_layout)
            scores, weights = warpgroup_mma_wait(0, deps=[asked, weights])
            behind = slot
            slot, phase = following(slot, phase, STAGES)
            mbarrier.wait(ready.index(slot), phase)

            blocks = last // KEYS + 1
            unmasked = gl.minimum(gl.maximum((lowest + 1) // KEYS, 1), blocks)
            behind, slot, phase, scores, top, total, acc, split_top, lanes, split_acc, weights = walk(
                1, unmasked, behind, slot, phase, scores, top, total, acc, split_top, lanes, split_acc, weights,
                position, factor, q_shared, k_ring, v_ring, ready, free, False, KEYS, SPLIT, STAGES,
            )  # fmt: skip
            behind, slot, phase, scores, top, total, acc, split_top, lanes, split_acc, weights = walk(
                unmasked, blocks, behind, slot, phase, scores, top, total, acc, split_top, lanes, split_acc, weights,
                position, factor, q_shared, k_ring, v_ring, ready, free, True, KEYS, SPLIT, STAGES,
            )  # fmt: skip

            if (last + 1) % KEYS != 0:
                v = v_ring.index(behind).load(flat)
                key = (blocks - 1) * KEYS + gl.arange(0, KEYS, gl.SliceLayout(1, flat))
                v_ring.index(behind).store(gl.where(gl.expand_dims(key <= last, 1), v, gl.zeros_like(v)))
                fence_async_shared()
                gl.thread_barrier()
            begun = ((blocks - 1) * KEYS) % SPLIT != 0
            product = warpgroup_mma(weights, v_ring.index(behind), split_acc, use_acc=begun, is_async=True)
            split_acc = warpgroup_mma_wait(0, deps=[product])
            if COPIED:
                mbarrier.arrive(q_free.index(q_slot), count=1)
                q_phase = q_phase ^ q_slot
                q_slot = q_slot ^ 1
            mbarrier.arrive(free.index(behind), count=1)
            top, total, acc = fold(top, total, acc, split_top, lanes, split_acc, factor)
            result = gl.convert_layout(finish(total, acc).to(output.dtype.element_ty), flat)
            offsets, wanted = places_of(first, count, kv_head, WHICH, group, QUERY_HEADS, D)
            gl.store(output + offsets, result, mask=wanted)


@gluon.jit
def attention_hopper(
    queries,
    keys,
    values,
    output,
    positions,
    tile_first,
    tile_count,
    tile_request,
    page_table,
    table_width,
    tiles,
    factor,
    QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    D: gl.constexpr,
    PAGE: gl.constexpr,
    KEYS: gl.constexpr,
    SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
    COPIED: gl.constexpr,
    DEPENDENT: gl.constexpr,
):
    """Grid (programs,), any number. Tile t is the batch rows tile_first[t] .. + tile_count[t] - 1, at most
    2 * GROUP_ROWS div group of them, of the request tile_request[t]."""
    wait_ahead(DEPENDENT)
    act: gl.constexpr = keys.dtype
    k_ring = gl.allocate_shared_memory(act, [STAGES, KEYS, D], keys.layout)
    v_ring = gl.allocate_shared_memory(act, [STAGES, KEYS, D], values.layout)
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    if COPIED:
        q_ring = gl.allocate_shared_memory(act, [4, GROUP_ROWS // group, group, D], queries.layout)
    else:
        q_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_ROWS, D], act)
        q_ring = gl.allocate_shared_memory(act, [2, GROUP_ROWS, D], q_layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    for which in gl.static_range(2):
        mbarrier.init(q_ready.index(which), count=1)
        mbarrier.init(q_free.index(which), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (consume, (
                queries, output, positions, tile_first, tile_count, tiles, factor, q_ring, k_ring, v_ring, q_ready,
                q_free, ready, free, 0, COPIED, QUERY_HEADS, KV_HEADS, D,
                KEYS, SPLIT, STAGES,
            )),
            (consume, (
                queries, output, positions, tile_first, tile_count, tiles, factor, q_ring, k_ring, v_ring, q_ready,
                q_free, ready, free, 1, COPIED, QUERY_HEADS, KV_HEADS, D,
                KEYS, SPLIT, STAGES,
            )),
            (produce, (
                queries, keys, values, positions, tile_first, tile_count, tile_request, page_table, table_width, tiles,
                q_ring, k_ring, v_ring, q_ready, q_free, ready, free, COPIED, QUERY_HEADS,
                KV_HEADS, PAGE, KEYS, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
