"""Attention of whole tiles for Hopper (sm_90): one warp copies key blocks, two groups of four warps consume them.

Written in Gluon, Triton's language below Triton: layouts, copies, barriers and tensor-core products in flight are
named here, not inferred. What is computed for one row is the clause, block by block, as in `attention_core`.

A program walks tiles of 2 * GROUP_ROWS rows. Its producer warp copies queries, and keys and values of one key block
after another, into rings of shared memory; each consumer group owns GROUP_ROWS rows. While a consumer does the
exponentials of one block, the tensor cores multiply the values of the block before and make the scores of the block
behind. That takes registers, so the folded accumulator of earlier splits waits in shared memory.
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

from samebits.numerics.gpu.attention_gluon import HIDDEN, SUM_LANES, finish, fold_lanes, soften
from samebits.numerics.gpu.attention_hopper import wait_ahead

GROUP_ROWS = gl.constexpr(64)
"""Rows of a consumer group: what one warpgroup product computes."""


@gluon.constexpr_function
def own_places(D):
    """A place in shared memory for every element of an accumulator [GROUP_ROWS, D], such that a thread's elements
    lie in runs of 16 bytes, and those of neighbouring threads side by side."""
    thread = [[0, 1], [8, 0]]
    lanes = [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]]
    warps = [[16, 0], [32, 0]]
    rest = [[0, column] for column in (8, 16, 32, 64, 128) if column < D]
    return gl.SharedLinearLayout(thread + lanes + warps + rest)


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
    """The place in a ring after this one."""
    slot += 1
    if slot == STAGES:
        slot = 0
        phase = phase ^ 1
    return slot, phase


@gluon.jit
def pairs_of(last, KEYS: gl.constexpr):
    """Pairs of key blocks up to the key `last`; the second of the last pair may hold no key that is seen."""
    return last // (2 * KEYS) + 1


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
    q_places,
    k_ring,
    v_ring,
    q_ready,
    q_free,
    k_ready,
    k_free,
    v_ready,
    v_free,
    COPIED: gl.constexpr,
    QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy the queries, with COPIED, and the key blocks of every tile of this program into the rings."""
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    slot = 0
    phase = 1
    q_phase = 1
    for begin in range(0, tiles * KV_HEADS, gl.num_programs(0)):
        tile, kv_head = work_of(begin, tiles, KV_HEADS)
        count = gl.load(tile_count + tile, mask=tile < tiles, other=0)
        if count > 0:
            request = gl.load(tile_request + tile)
            first = gl.load(tile_first + tile)
            last = gl.load(positions + first + count - 1).to(gl.int32)
            pages = page_table + request.to(gl.int64) * table_width
            for block in range(0, 2 * pairs_of(last, KEYS)):
                key = gl.minimum(block, last // KEYS) * KEYS
                page = gl.load(pages + key // PAGE)
                row = (page * KV_HEADS + kv_head) * PAGE + key % PAGE
                mbarrier.wait(k_free.index(slot), phase)
                mbarrier.expect(k_ready.index(slot), keys.block_type.nbytes)
                tma.async_copy_global_to_shared(keys, [row, 0], k_ready.index(slot), k_ring.index(slot))
                if COPIED:
                    if block == 0:
                        mbarrier.wait(q_free, q_phase)
                        mbarrier.expect(q_ready, 2 * queries.block_type.nbytes)
                        for which in gl.static_range(2):
                            place = [first + which * (GROUP_ROWS // group), kv_head * group, 0]
                            tma.async_copy_global_to_shared(queries, place, q_ready, q_places.index(which))
                mbarrier.wait(v_free.index(slot), phase)
                mbarrier.expect(v_ready.index(slot), values.block_type.nbytes)
                tma.async_copy_global_to_shared(values, [row, 0], v_ready.index(slot), v_ring.index(slot))
                slot, phase = following(slot, phase, STAGES)
            q_phase = q_phase ^ 1


@gluon.jit
def fold_sums(top, total, split_top, split_lanes, factor):
    """Fold a split's maximum and row sum into those of the splits before it: (maximum, sum, what the accumulator of
    the splits before is multiplied by, and that of the split)."""
    new_top = gl.maximum(top, split_top)
    keep = gl.exp2((top - new_top) * factor)
    take = gl.exp2((split_top - new_top) * factor)
    split_total = gl.convert_layout(fold_lanes(split_lanes), top.type.layout)
    return new_top, gl.fma(total, keep, split_total * take), keep, take


@gluon.jit
def of_rows(column, acc):
    """A value of each row, beside an accumulator."""
    return gl.expand_dims(gl.convert_layout(column, gl.SliceLayout(1, acc.type.layout)), 1)


@gluon.jit
def begins(block, KEYS: gl.constexpr, SPLIT: gl.constexpr):
    """Whether a split begins with this block."""
    return (block * KEYS) % SPLIT == 0


@gluon.jit
def multiply_values(
    block, sharp, scale, keep, split_acc, totals, values, KEYS: gl.constexpr, SPLIT: gl.constexpr
):
    """Begin the value product of a block with the weights `sharp`. Where the block begins a split, what was summed
    before is folded into `totals`; else it is brought to the block's maximum."""
    split_acc = split_acc * of_rows(scale, split_acc)
    if begins(block, KEYS, SPLIT) & (block > 0):
        totals.store(gl.fma(totals.load(split_acc.type.layout), of_rows(keep, split_acc), split_acc))
    weights = gl.convert_layout(sharp.to(values.dtype), gl.DotOperandLayout(0, split_acc.type.layout, 2))
    begun = (block * KEYS) % SPLIT != 0
    return warpgroup_mma(weights, values, split_acc, use_acc=begun, is_async=True)


@gluon.jit
def masked(block, scores, position, lowest, KEYS: gl.constexpr):
    """Scores of a block, with those of keys that a row does not see replaced, where there are such."""
    if (block + 1) * KEYS > lowest + 1:
        column = block * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, scores.type.layout))
        visible = gl.expand_dims(column, 0) <= gl.expand_dims(position, 1)
        scores = gl.where(visible, scores, float("-inf"))
    return scores


@gluon.jit
def zero_behind(block, last, values, KEYS: gl.constexpr):
    """Make the values of a block [KEYS, D] zero after the key `last`."""
    if (block + 1) * KEYS > last + 1:
        flat: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
        v = values.load(flat)
        key = block * KEYS + gl.arange(0, KEYS, gl.SliceLayout(1, flat))
        values.store(gl.where(gl.expand_dims(key <= last, 1), v, gl.zeros_like(v)))
        fence_async_shared()
        gl.thread_barrier()


@gluon.jit
def settled(lanes):
    """Lanes, and with them every weight they are summed of, are computed here and not later: the assembler would
    rather do exponentials after the wait for the products in flight. It may not move a store, though this one is
    never done, for no lane is negative."""
    return gl.inline_asm_elementwise(
        """{
        .reg .pred negative;
        .reg .f32 least;
        .reg .b32 nowhere;
        min.f32 least, $4, $5;
        min.f32 least, least, $6;
        min.f32 least, least, $7;
        setp.lt.f32 negative, least, 0f00000000;
        mov.b32 nowhere, 0;
        @negative st.shared.f32 [nowhere], least;
        mov.b32 $0, $4;
        mov.b32 $1, $5;
        mov.b32 $2, $6;
        mov.b32 $3, $7;
        }""",
        "=r,=r,=r,=r,r,r,r,r",
        [lanes],
        dtype=gl.float32,
        is_pure=False,
        pack=4,
    )


@gluon.jit
def step(
    block,
    blocks,
    slot,
    phase,
    scores,
    sharp,
    scale,
    keep,
    split_acc,
    top,
    total,
    split_top,
    lanes,
    position,
    lowest,
    last,
    factor,
    q,
    totals,
    k_ring,
    v_ring,
    k_ready,
    k_free,
    v_ready,
    v_free,
    AHEAD: gl.constexpr,
    KEYS: gl.constexpr,
    SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
):
    """One key block: from its scores to its weights. Meanwhile the weights of the block before, which lies in `slot`,
    are multiplied by its values and, with AHEAD, the scores of the block behind are made."""
    s_layout: gl.constexpr = scores.type.layout
    this_slot, this_phase = following(slot, phase, STAGES)
    next_slot, next_phase = following(this_slot, this_phase, STAGES)
    empty = gl.zeros([GROUP_ROWS, KEYS], gl.float32, s_layout)
    if AHEAD:
        ahead = warpgroup_mma(q, k_ring.index(next_slot).permute((1, 0)), empty, use_acc=False, is_async=True)
    product = multiply_values(
        block - 1, sharp, scale, keep, split_acc, totals, v_ring.index(slot), KEYS, SPLIT
    )
    first = begins(block, KEYS, SPLIT)
    take = scale
    if first:
        top, total, keep, take = fold_sums(top, total, split_top, lanes, factor)
    split_top = gl.where(first, HIDDEN, split_top)
    lanes = gl.where(first, 0.0, lanes)
    scores = masked(block, scores, position, lowest, KEYS)
    sharp, split_top, lanes, shrink = soften(scores, split_top, lanes, 0, factor, False, KEYS)
    scale = gl.where(first, take, shrink)
    lanes = settled(lanes)
    mbarrier.wait(v_ready.index(this_slot), this_phase)
    if AHEAD:
        third_slot, third_phase = following(next_slot, next_phase, STAGES)
        mbarrier.wait(k_ready.index(third_slot), third_phase, pred=block + 2 < blocks)
    zero_behind(block, last, v_ring.index(this_slot), KEYS)
    if AHEAD:
        ahead, split_acc, sharp, scale = warpgroup_mma_wait(0, deps=[ahead, product, sharp, scale])
        mbarrier.arrive(k_free.index(next_slot), count=1)
    else:
        split_acc, sharp, scale = warpgroup_mma_wait(0, deps=[product, sharp, scale])
        ahead = empty
    mbarrier.arrive(v_free.index(slot), count=1)
    return this_slot, this_phase, ahead, sharp, scale, keep, split_acc, top, total, split_top, lanes


@gluon.jit
def consume(
    queries,
    output,
    positions,
    tile_first,
    tile_count,
    tiles,
    factor,
    q_places,
    totals,
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
    """The rows WHICH * GROUP_ROWS .. of every tile of this program."""
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    a_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    l_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SUM_LANES, 16])
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    slot = 0
    phase = 0
    q_phase = 0
    for begin in range(0, tiles * KV_HEADS, gl.num_programs(0)):
        tile, kv_head = work_of(begin, tiles, KV_HEADS)
        count = gl.load(tile_count + tile, mask=tile < tiles, other=0)
        if count > 0:
            first = gl.load(tile_first + tile)
            lowest = gl.load(positions + first).to(gl.int32)
            last = gl.load(positions + first + count - 1).to(gl.int32)
            rows = WHICH * GROUP_ROWS + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, flat))
            heads = kv_head * group + rows % group
            places = ((first + rows // group).to(gl.int64) * QUERY_HEADS + heads) * D
            columns = gl.arange(0, D, gl.SliceLayout(0, flat))
            offsets = gl.expand_dims(places, 1) + gl.expand_dims(columns, 0)
            wanted = gl.expand_dims(rows // group < count, 1) & gl.expand_dims(columns >= 0, 0)
            if COPIED:
                q = q_places.index(WHICH).reshape([GROUP_ROWS, D])
            else:
                q = q_places.index(WHICH)
                q.store(gl.load(queries + offsets, mask=wanted, other=0.0))
                fence_async_shared()
                gl.thread_barrier()
            tokens = (WHICH * GROUP_ROWS + gl.arange(0, GROUP_ROWS, s_rows)) // group
            position = gl.load(positions + first + tokens, mask=tokens < count, other=-1).to(gl.int32)
            top = gl.full([GROUP_ROWS], HIDDEN, gl.float32, s_rows)
            total = gl.zeros([GROUP_ROWS], gl.float32, s_rows)
            split_top = gl.full([GROUP_ROWS], HIDDEN, gl.float32, s_rows)
            lanes = gl.zeros([GROUP_ROWS, SUM_LANES], gl.float32, l_layout)
            split_acc = gl.zeros([GROUP_ROWS, D], gl.float32, a_layout)
            totals.store(split_acc)

            if COPIED:
                mbarrier.wait(q_ready, q_phase)
                q_phase = q_phase ^ 1
            mbarrier.wait(k_ready.index(slot), phase)
            empty = gl.zeros([GROUP_ROWS, KEYS], gl.float32, s_layout)
            scores = warpgroup_mma(q, k_ring.index(slot).permute((1, 0)), empty, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, deps=[scores])
            mbarrier.arrive(k_free.index(slot), count=1)
            next_slot, next_phase = following(slot, phase, STAGES)
            mbarrier.wait(k_ready.index(next_slot), next_phase)
            second = warpgroup_mma(
                q, k_ring.index(next_slot).permute((1, 0)), empty, use_acc=False, is_async=True
            )
            scores = masked(0, scores, position, lowest, KEYS)
            sharp, split_top, lanes, scale = soften(scores, split_top, lanes, 0, factor, False, KEYS)
            keep = scale
            mbarrier.wait(v_ready.index(slot), phase)
            blocks = 2 * pairs_of(last, KEYS)
            third_slot, third_phase = following(next_slot, next_phase, STAGES)
            mbarrier.wait(k_ready.index(third_slot), third_phase, pred=blocks > 2)
            zero_behind(0, last, v_ring.index(slot), KEYS)
            scores = warpgroup_mma_wait(0, deps=[second])
            mbarrier.arrive(k_free.index(next_slot), count=1)
            for block in range(1, blocks - 1, 2):
                slot, phase, ahead, sharp, scale, keep, split_acc, top, total, split_top, lanes = step(
                    block, blocks, slot, phase, scores, sharp, scale, keep, split_acc, top, total, split_top, lanes,
                    position, lowest, last, factor, q, totals, k_ring, v_ring, k_ready, k_free, v_ready, v_free, True,
                    KEYS, SPLIT, STAGES,
                )  # fmt: skip
                slot, phase, scores, sharp, scale, keep, split_acc, top, total, split_top, lanes = step(
                    block + 1, blocks, slot, phase, ahead, sharp, scale, keep, split_acc, top, total, split_top, lanes,
                    position, lowest, last, factor, q, totals, k_ring, v_ring, k_ready, k_free, v_ready, v_free, True,
                    KEYS, SPLIT, STAGES,
                )  # fmt: skip
            if COPIED:
                mbarrier.arrive(q_free, count=1)
            slot, phase, scores, sharp, scale, keep, split_acc, top, total, split_top, lanes = step(
                blocks - 1, blocks, slot, phase, scores, sharp, scale, keep, split_acc, top, total, split_top, lanes,
                position, lowest, last, factor, q, totals, k_ring, v_ring, k_ready, k_free, v_ready, v_free, False,
                KEYS, SPLIT, STAGES,
            )  # fmt: skip
            product = multiply_values(
                blocks - 1, sharp, scale, keep, split_acc, totals, v_ring.index(slot), KEYS, SPLIT
            )
            split_acc = warpgroup_mma_wait(0, deps=[product])
            mbarrier.arrive(v_free.index(slot), count=1)
            slot, phase = following(slot, phase, STAGES)
            top, total, keep, take = fold_sums(top, total, split_top, lanes, factor)
            split_acc = split_acc * of_rows(take, split_acc)
            acc = gl.fma(totals.load(a_layout), of_rows(keep, split_acc), split_acc)
            result = gl.convert_layout(finish(total, acc).to(output.dtype.element_ty), flat)
            gl.store(output + offsets, result, mask=wanted)


@gluon.jit
def attention_third(
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
    2 * GROUP_ROWS div group of them, of the request tile_request[t]. COPIED: `queries` is a tensor descriptor."""
    wait_ahead(DEPENDENT)
    act: gl.constexpr = keys.dtype
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    k_ring = gl.allocate_shared_memory(act, [STAGES, KEYS, D], keys.layout)
    v_ring = gl.allocate_shared_memory(act, [STAGES, KEYS, D], values.layout)
    if COPIED:
        q_places = gl.allocate_shared_memory(act, [2, GROUP_ROWS // group, group, D], queries.layout)
    else:
        q_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_ROWS, D], act)
        q_places = gl.allocate_shared_memory(act, [2, GROUP_ROWS, D], q_layout)
    totals_0 = gl.allocate_shared_memory(gl.float32, [GROUP_ROWS, D], own_places(D))
    totals_1 = gl.allocate_shared_memory(gl.float32, [GROUP_ROWS, D], own_places(D))
    q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_free = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_ready, count=1)
    mbarrier.init(q_free, count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(v_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
        mbarrier.init(v_free.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (consume, (
                queries, output, positions, tile_first, tile_count, tiles, factor, q_places, totals_0, k_ring, v_ring,
                q_ready, q_free, k_ready, k_free, v_ready, v_free, 0, COPIED, QUERY_HEADS, KV_HEADS, D, KEYS, SPLIT,
                STAGES,
            )),
            (consume, (
                queries, output, positions, tile_first, tile_count, tiles, factor, q_places, totals_1, k_ring, v_ring,
                q_ready, q_free, k_ready, k_free, v_ready, v_free, 1, COPIED, QUERY_HEADS, KV_HEADS, D, KEYS, SPLIT,
                STAGES,
            )),
            (produce, (
                queries, keys, values, positions, tile_first, tile_count, tile_request, page_table, table_width, tiles,
                q_places, k_ring, v_ring, q_ready, q_free, k_ready, k_free, v_ready, v_free, COPIED, QUERY_HEADS,
                KV_HEADS, PAGE, KEYS, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
