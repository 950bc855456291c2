"""Attention of few rows over long contexts for Hopper (sm_90): `attention_ranges` with a split at a time.

Written in Gluon. One warp copies whole splits, keys and then values, into a ring of shared memory; four warps consume
them. Tensor cores multiply key blocks by the transposed queries, so that a tile has eight query rows and none is wasted
on rows that do not exist. The scores of all key blocks of a split are computed side by side, the maxima of all are
found in one go, and only the value products, which the clause chains, follow one another. What is computed for a row
is the clause, as in `attention_core`.
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

from samebits.numerics.gpu.attention_gluon import HIDDEN, SUM_LANES, block_sums, finish, fold, fold_lanes
from samebits.numerics.gpu.attention_gluon_fold import TOGETHER, share_fold
from samebits.numerics.gpu.attention_hopper import following

ROWS = gl.constexpr(8)
"""Query rows of a tile: the narrowest that tensor cores multiply."""
BLOCKS = gl.constexpr(4)
"""Key blocks of a split."""
PLAN_WORDS = gl.constexpr(16)


@gluon.jit
def following_pair(
    taken, place, end, unit, offset, splits, first, count, request, last, positions, unit_first, unit_count,
    unit_request, split_start, KV_HEADS: gl.constexpr,
):  # fmt: skip
    """The state of a walk after `taken` splits."""
    place += taken
    offset += taken
    if (offset == splits * KV_HEADS) & (place < end):
        offset = offset * 0
        unit += 1
        splits = gl.load(split_start + unit + 1) - gl.load(split_start + unit)
        while splits == 0:
            unit += 1
            splits = gl.load(split_start + unit + 1) - gl.load(split_start + unit)
        first = gl.load(unit_first + unit)
        count = gl.load(unit_count + unit)
        request = gl.load(unit_request + unit)
        last = gl.load(positions + first + count - 1).to(gl.int32)
    return place, unit, offset, splits, first, count, request, last


@gluon.jit
def pages_of(page_table, table_width, request, key, last, exists, KEYS: gl.constexpr, PAGE: gl.constexpr):
    """The pages of the key blocks of the split that begins at the absolute key `key`."""
    pages = page_table + request.to(gl.int64) * table_width
    page_0 = gl.load(pages + key // PAGE, mask=exists, other=0)
    page_1 = gl.load(pages + gl.minimum(key + KEYS, last) // PAGE, mask=exists, other=0)
    page_2 = gl.load(pages + gl.minimum(key + 2 * KEYS, last) // PAGE, mask=exists, other=0)
    page_3 = gl.load(pages + gl.minimum(key + 3 * KEYS, last) // PAGE, mask=exists, other=0)
    return page_0, page_1, page_2, page_3


@gluon.jit
def copy_block(storage, page, kv_head, key, last, ready, place, KV_HEADS: gl.constexpr, PAGE: gl.constexpr):
    """Copy a key block to `place`, or only arrive where there is none."""
    if key <= last:
        row = (page * KV_HEADS + kv_head) * PAGE + key % PAGE
        mbarrier.expect(ready, storage.block_type.nbytes)
        tma.async_copy_global_to_shared(storage, [row, 0], ready, place)
    else:
        mbarrier.arrive(ready, count=1)


@gluon.jit
def produce(
    place, end, unit, offset, may_cut, splits, first, count, request, last, page_0, page_1, page_2, page_3,
    keys, values, positions, unit_first, unit_count, unit_request, split_start, page_table, table_width,
    ring, ready, free, KV_HEADS: gl.constexpr, PAGE: gl.constexpr, KEYS: gl.constexpr, SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Copy the keys and values of every split of this program's range into the ring. Pages are looked up a split
    ahead."""
    group = 0
    phase = 1
    while place < end:
        kv_head = offset // splits
        begin = offset % splits
        taken = splits - begin
        if may_cut != 0:
            taken = gl.minimum(taken, end - place)
        for split in range(begin, begin + taken):
            key = split * SPLIT
            for side in gl.static_range(2):
                storage = keys if side == 0 else values
                mbarrier.wait(free.index(group), phase)
                at = ready.index(group)
                slot = group * BLOCKS
                copy_block(storage, page_0, kv_head, key, last, at, ring.index(slot), KV_HEADS, PAGE)
                copy_block(
                    storage, page_1, kv_head, key + KEYS, last, at, ring.index(slot + 1), KV_HEADS, PAGE
                )
                copy_block(
                    storage, page_2, kv_head, key + 2 * KEYS, last, at, ring.index(slot + 2), KV_HEADS, PAGE
                )
                copy_block(
                    storage, page_3, kv_head, key + 3 * KEYS, last, at, ring.index(slot + 3), KV_HEADS, PAGE
                )
                group, phase = following(group, phase, STAGES)
            more = key + SPLIT <= last
            page_0, page_1, page_2, page_3 = pages_of(
                page_table, table_width, request, key + SPLIT, last, more, KEYS, PAGE
            )
        place, unit, offset, splits, first, count, request, last = following_pair(
            taken, place, end, unit, offset, splits, first, count, request, last, positions, unit_first, unit_count,
            unit_request, split_start, KV_HEADS,
        )  # fmt: skip
        page_0, page_1, page_2, page_3 = pages_of(
            page_table, table_width, request, offset % splits * SPLIT, last, place < end, KEYS, PAGE
        )


@gluon.jit
def four(parts):
    """Four tensors out of the last two axes of one, both of size 2."""
    low, high = gl.split(parts)
    first, second = gl.split(low)
    third, fourth = gl.split(high)
    return first, second, third, fourth


@gluon.jit
def joined(first, second, third, fourth):
    """The inverse of `four`."""
    return gl.join(gl.join(first, second), gl.join(third, fourth))


@gluon.jit
def weigh(score, top, position, key, factor, KEYS: gl.constexpr):
    """Weights [KEYS, ROWS] of a key block that begins at the absolute key `key`, under the maximum `top`."""
    layout: gl.constexpr = score.type.layout
    keys = key + gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    visible = gl.expand_dims(keys, 1) <= gl.expand_dims(position, 0)
    weight = gl.exp2(gl.fma(score, factor, gl.expand_dims(-(top * factor), 0)))
    return gl.where(visible, weight, 0.0)


@gluon.jit
def hide(score, position, key, KEYS: gl.constexpr):
    """Scores [KEYS, ROWS] of a key block with those hidden that a row does not see."""
    keys = key + gl.arange(0, KEYS, gl.SliceLayout(1, score.type.layout))
    return gl.where(gl.expand_dims(keys, 1) <= gl.expand_dims(position, 0), score, HIDDEN)


@gluon.jit
def attend_split(
    q, p, ring, ready, free, group, phase, key, last, position, factor, D: gl.constexpr, KEYS: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """One split that begins at the absolute key `key`: (top [ROWS], lanes [ROWS, SUM_LANES], accumulator [ROWS, D], the
    ring's next place). A split of which some blocks do not exist has weights of zero there."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    rows: gl.constexpr = gl.SliceLayout(0, s_layout)
    # Keys that halving adds lie in one thread; so do the blocks of a split.
    w_layout: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 8], [0, 16], [0, 32], [1, 0], [2, 0]], [[0, 1], [0, 2], [0, 4], [4, 0], [8, 0]], [[16, 0], [0, 0]], [],
        [BLOCKS * ROWS, KEYS],
    )  # fmt: skip
    mbarrier.wait(ready.index(group), phase)
    empty = gl.zeros([KEYS, ROWS], gl.float32, s_layout)
    place = group * BLOCKS
    s_0 = warpgroup_mma(ring.index(place), q.permute((1, 0)), empty, use_acc=False, is_async=True)
    s_1 = warpgroup_mma(ring.index(place + 1), q.permute((1, 0)), empty, use_acc=False, is_async=True)
    s_2 = warpgroup_mma(ring.index(place + 2), q.permute((1, 0)), empty, use_acc=False, is_async=True)
    s_3 = warpgroup_mma(ring.index(place + 3), q.permute((1, 0)), empty, use_acc=False, is_async=True)
    s_0, s_1, s_2, s_3 = warpgroup_mma_wait(0, deps=[s_0, s_1, s_2, s_3])
    s_0 = hide(s_0, position, key, KEYS)
    s_1 = hide(s_1, position, key + KEYS, KEYS)
    s_2 = hide(s_2, position, key + 2 * KEYS, KEYS)
    s_3 = hide(s_3, position, key + 3 * KEYS, KEYS)
    m_0, m_1, m_2, m_3 = four(gl.max(joined(s_0, s_1, s_2, s_3), axis=0))
    mbarrier.arrive(free.index(group), count=1)
    group, phase = following(group, phase, STAGES)
    top_0 = gl.maximum(gl.full([ROWS], HIDDEN, gl.float32, rows), gl.convert_layout(m_0, rows))
    top_1 = gl.maximum(top_0, gl.convert_layout(m_1, rows))
    top_2 = gl.maximum(top_1, gl.convert_layout(m_2, rows))
    top_3 = gl.maximum(top_2, gl.convert_layout(m_3, rows))
    w_0 = weigh(s_0, top_0, position, key, factor, KEYS)
    w_1 = weigh(s_1, top_1, position, key + KEYS, factor, KEYS)
    w_2 = weigh(s_2, top_2, position, key + 2 * KEYS, factor, KEYS)
    w_3 = weigh(s_3, top_3, position, key + 3 * KEYS, factor, KEYS)
    shrink_1 = gl.exp2((top_0 - top_1) * factor)
    shrink_2 = gl.exp2((top_1 - top_2) * factor)
    shrink_3 = gl.exp2((top_2 - top_3) * factor)
    p.index(0).permute((1, 0)).store(w_0.to(p.dtype))
    p.index(1).permute((1, 0)).store(w_1.to(p.dtype))
    p.index(2).permute((1, 0)).store(w_2.to(p.dtype))
    p.index(3).permute((1, 0)).store(w_3.to(p.dtype))
    mbarrier.wait(ready.index(group), phase)
    place = group * BLOCKS
    if key + BLOCKS * KEYS > last + 1:
        # What stands behind the last key may be no number at all.
        flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
        for block in gl.static_range(BLOCKS):
            v = ring.index(place + block).load(flat)
            keys = key + block * KEYS + gl.arange(0, KEYS, gl.SliceLayout(1, flat))
            ring.index(place + block).store(gl.where(gl.expand_dims(keys <= last, 1), v, gl.zeros_like(v)))
    fence_async_shared()
    gl.thread_barrier()
    acc = gl.zeros([D, ROWS], gl.float32, s_layout)
    product = warpgroup_mma(
        ring.index(place).permute((1, 0)), p.index(0).permute((1, 0)), acc, use_acc=False, is_async=True
    )
    weights = gl.permute(joined(w_0, w_1, w_2, w_3), (1, 2, 3, 0))
    weights = gl.convert_layout(gl.reshape(weights, (ROWS * BLOCKS, KEYS)), w_layout)
    sums = gl.reshape(block_sums(weights, KEYS), (ROWS, 2, 2, SUM_LANES))
    sums = gl.permute(sums, (0, 3, 1, 2))
    shrinks = joined(shrink_1, shrink_1, shrink_2, shrink_3)
    shrinks = gl.convert_layout(shrinks, gl.SliceLayout(1, sums.type.layout))
    _, of_1, of_2, of_3 = four(gl.expand_dims(shrinks, 1))
    sum_0, sum_1, sum_2, sum_3 = four(sums)
    lanes = gl.fma(gl.fma(gl.fma(sum_0, of_1, sum_1), of_2, sum_2), of_3, sum_3)
    acc = warpgroup_mma_wait(0, deps=[product])
    if key + KEYS <= last:
        acc = acc * gl.expand_dims(shrink_1, 0)
        product = warpgroup_mma(
            ring.index(place + 1).permute((1, 0)), p.index(1).permute((1, 0)), acc, is_async=True
        )
        acc = warpgroup_mma_wait(0, deps=[product])
    if key + 2 * KEYS <= last:
        acc = acc * gl.expand_dims(shrink_2, 0)
        product = warpgroup_mma(
            ring.index(place + 2).permute((1, 0)), p.index(2).permute((1, 0)), acc, is_async=True
        )
        acc = warpgroup_mma_wait(0, deps=[product])
    if key + 3 * KEYS <= last:
        acc = acc * gl.expand_dims(shrink_3, 0)
        product = warpgroup_mma(
            ring.index(place + 3).permute((1, 0)), p.index(3).permute((1, 0)), acc, is_async=True
        )
        acc = warpgroup_mma_wait(0, deps=[product])
    gl.thread_barrier()
    mbarrier.arrive(free.index(group), count=1)
    group, phase = following(group, phase, STAGES)
    return top_3, lanes, gl.permute(acc, (1, 0)), group, phase


@gluon.jit
def consume(
    place, end, unit, offset, may_cut, splits, first, count, request, last, length,
    queries, output, positions, unit_first, unit_count, unit_request, split_start, tops, totals, accumulators,
    arrivals, factor, q, p, tile, ring, ready, free, QUERY_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr,
    KEYS: gl.constexpr, SPLIT: gl.constexpr, STRIDE: gl.constexpr, STAGES: gl.constexpr,
    POLLS: gl.constexpr,
):  # fmt: skip
    """Walk this program's range."""
    GROUP: gl.constexpr = QUERY_HEADS // KV_HEADS
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    s_rows: gl.constexpr = gl.SliceLayout(0, s_layout)
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    programs = gl.num_programs(0)
    group = 0
    phase = 0
    while place < end:
        kv_head = offset // splits
        begin = offset % splits
        taken = splits - begin
        if may_cut != 0:
            taken = gl.minimum(taken, end - place)
        row = gl.arange(0, ROWS, gl.SliceLayout(1, flat))
        wanted = gl.expand_dims(row // GROUP < count, 1)
        line = ((first + row // GROUP).to(gl.int64) * QUERY_HEADS + kv_head * GROUP + row % GROUP) * D
        column = gl.arange(0, D, gl.SliceLayout(0, flat))
        places = gl.expand_dims(line, 1) + gl.expand_dims(column, 0)
        q.store(gl.load(queries + places, mask=wanted & gl.expand_dims(column >= 0, 0), other=0.0))
        fence_async_shared()
        gl.thread_barrier()
        token = gl.arange(0, ROWS, s_rows) // GROUP
        position = gl.load(positions + first + token, mask=token < count, other=-1).to(gl.int32)
        is_whole = taken == splits
        top = gl.full([ROWS], HIDDEN, gl.float32, s_rows)
        total = gl.zeros([ROWS], gl.float32, s_rows)
        acc = gl.permute(gl.zeros([D, ROWS], gl.float32, s_layout), (1, 0))
        a_row = gl.arange(0, ROWS, gl.SliceLayout(1, acc.type.layout))
        a_column = gl.arange(0, D, gl.SliceLayout(0, acc.type.layout))
        a_wanted = gl.expand_dims(a_row // GROUP < count, 1) & gl.expand_dims(a_column >= 0, 0)
        a_place = gl.expand_dims(a_row * D, 1) + gl.expand_dims(a_column, 0)
        s_row = gl.arange(0, ROWS, s_rows)
        for done in range(0, taken):
            one_top, one_lanes, one_acc, group, phase = attend_split(
                q,
                p,
                ring,
                ready,
                free,
                group,
                phase,
                (begin + done) * SPLIT,
                last,
                position,
                factor,
                D,
                KEYS,
                STAGES,
            )
            if is_whole:
                top, total, acc = fold(top, total, acc, one_top, one_lanes, one_acc, factor)
            else:
                one_total = gl.convert_layout(fold_lanes(one_lanes), s_rows)
                slot = (place + done).to(gl.int64) * STRIDE
                gl.store(tops + slot + s_row, one_top, mask=token < count)
                gl.store(totals + slot + s_row, one_total, mask=token < count)
                gl.store(accumulators + slot * D + a_place, one_acc, mask=a_wanted)
        if is_whole:
            result = gl.convert_layout(finish(total, acc).to(output.dtype.element_ty), flat)
            gl.store(output + places, result, mask=wanted & gl.expand_dims(column >= 0, 0))
        else:
            gl.thread_barrier()
            polls = gl.where(place + taken == end, POLLS, 0)
            share_fold(
                output, tops, totals, accumulators, tile, arrivals + (unit * KV_HEADS + kv_head) * 2, taken, polls,
                place - begin, splits, first, count, kv_head, length, programs, factor, QUERY_HEADS, GROUP, D,
                STRIDE,
            )  # fmt: skip
        place, unit, offset, splits, first, count, request, last = following_pair(
            taken, place, end, unit, offset, splits, first, count, request, last, positions, unit_first, unit_count,
            unit_request, split_start, KV_HEADS,
        )  # fmt: skip


@gluon.jit
def attention_ranges_hopper(
    queries, keys, values, output, positions, unit_first, unit_count, unit_request, split_start, plans, page_table,
    tops, totals, accumulators, arrivals, units, table_width, factor, QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr, D: gl.constexpr, PAGE: gl.constexpr, KEYS: gl.constexpr, SPLIT: gl.constexpr,
    STRIDE: gl.constexpr, STAGES: gl.constexpr, POLLS: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """Grid (programs,). As `attention_ranges`, pinned; `keys` and `values` are descriptors of [rows, D]. The ring holds
    STAGES times the keys or the values of a split."""
    if DEPENDENT:
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
    plan = plans + gl.program_id(0) * PLAN_WORDS
    place = gl.load(plan)
    end = gl.load(plan + 1)
    unit = gl.load(plan + 2)
    offset = gl.load(plan + 3)
    may_cut = gl.load(plan + 4)
    splits = gl.load(plan + 5)
    first = gl.load(plan + 6)
    count = gl.load(plan + 7)
    request = gl.load(plan + 8)
    last = gl.load(plan + 9)
    length = gl.load(plan + 11).to(gl.int64) * KV_HEADS
    page_0, page_1, page_2, page_3 = pages_of(
        page_table, table_width, request, offset % splits * SPLIT, last, place < end, KEYS, PAGE
    )
    act: gl.constexpr = keys.dtype
    ring = gl.allocate_shared_memory(act, [STAGES * BLOCKS, KEYS, D], keys.layout)
    q_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], act)
    p_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, KEYS], act)
    q = gl.allocate_shared_memory(act, [ROWS, D], q_layout)
    p = gl.allocate_shared_memory(act, [BLOCKS, ROWS, KEYS], p_layout)
    t_layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    tile = gl.allocate_shared_memory(gl.float32, [TOGETHER, D], t_layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for group in gl.static_range(STAGES):
        mbarrier.init(ready.index(group), count=BLOCKS)
        mbarrier.init(free.index(group), count=1)
    fence_async_shared()
    if DEPENDENT:
        gl.inline_asm_elementwise(
            "griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
    gl.warp_specialize(
        [
            (consume, (
                place, end, unit, offset, may_cut, splits, first, count, request, last, length,
                queries, output, positions, unit_first, unit_count, unit_request, split_start, tops, totals,
                accumulators, arrivals, factor, q, p, tile, ring, ready, free, QUERY_HEADS, KV_HEADS, D, KEYS, SPLIT,
                STRIDE, STAGES, POLLS,
            )),
            (produce, (
                place, end, unit, offset, may_cut, splits, first, count, request, last, page_0, page_1, page_2, page_3,
                keys, values, positions, unit_first, unit_count, unit_request, split_start, page_table, table_width,
                ring, ready, free, KV_HEADS, PAGE, KEYS, SPLIT, STAGES,
            )),
        ],
        [1],
        [24],
    )  # fmt: skip
