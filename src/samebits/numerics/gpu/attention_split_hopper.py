"""One split of keys and values on Hopper (sm_90), for attention of few rows: copied as a whole, computed as a whole.

Written in Gluon. Keys and then values of a split lie in a ring of shared memory. Tensor cores multiply key blocks by
the transposed queries, so that a tile has eight query rows and none is wasted on rows that do not exist. The scores of
all key blocks of a split are computed side by side, the maxima of all are found in one go, and only the value products,
which the clause chains, follow one another. What is computed for a row is the clause, as in `attention_core`.
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

from samebits.numerics.gpu.attention_gluon import HIDDEN, SUM_LANES, block_sums
from samebits.numerics.gpu.attention_hopper import following

ROWS = gl.constexpr(8)
"""Query rows of a tile: the narrowest that tensor cores multiply."""
BLOCKS = gl.constexpr(4)
"""Key blocks of a split."""


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
def copy_block(
    storage, page, kv_head, key, last, ready, place, KV_HEADS: gl.constexpr, PAGE: gl.constexpr,
    KEYS: gl.constexpr, PIECE: gl.constexpr,
):  # fmt: skip
    """Copy a key block to `place`, or only arrive where there is none; nothing where `copy_rest` copies it."""
    if key + (KEYS - PIECE) <= last:
        row = (page * KV_HEADS + kv_head) * PAGE + key % PAGE
        mbarrier.expect(ready, storage.block_type.nbytes)
        tma.async_copy_global_to_shared(storage, [row, 0], ready, place)
    elif key > last:
        mbarrier.arrive(ready, count=1)


@gluon.jit
def copy_rest(
    storage, page_0, page_1, page_2, page_3, kv_head, key, last, ring, ready, slot, KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr, KEYS: gl.constexpr,
):  # fmt: skip
    """Copy the key block within which the split's context ends, where it lacks a piece or more: those that exist.
    What stands behind them in the ring is hidden or cleared."""
    PIECE: gl.constexpr = storage.block_shape[0]
    block = (last - key) // KEYS
    first = key + block * KEYS
    pieces = (last - first) // PIECE + 1
    if (block < BLOCKS) & (pieces < KEYS // PIECE):
        page = gl.where(
            block == 0, page_0, gl.where(block == 1, page_1, gl.where(block == 2, page_2, page_3))
        )
        row = (page * KV_HEADS + kv_head) * PAGE + first % PAGE
        place = ring.index(slot + block)
        for count in gl.static_range(1, KEYS // PIECE):
            if pieces == count:
                mbarrier.expect(ready, count * storage.block_type.nbytes)
                for piece in gl.static_range(count):
                    tma.async_copy_global_to_shared(
                        storage, [row + piece * PIECE, 0], ready, place.slice(piece * PIECE, PIECE)
                    )


@gluon.jit
def copy_split(
    storage, narrow, page_0, page_1, page_2, page_3, kv_head, key, last, ring, ready, group, KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr, KEYS: gl.constexpr,
):  # fmt: skip
    """Copy the keys or the values of the split that begins at the absolute key `key` to the ring's place `group`.
    `storage` and `narrow` are descriptors of key blocks and of their pieces."""
    PIECE: gl.constexpr = narrow.block_shape[0]
    at = ready.index(group)
    slot = group * BLOCKS
    copy_block(storage, page_0, kv_head, key, last, at, ring.index(slot), KV_HEADS, PAGE, KEYS, PIECE)
    copy_block(
        storage, page_1, kv_head, key + KEYS, last, at, ring.index(slot + 1), KV_HEADS, PAGE, KEYS, PIECE
    )
    copy_block(
        storage, page_2, kv_head, key + 2 * KEYS, last, at, ring.index(slot + 2), KV_HEADS, PAGE, KEYS, PIECE
    )
    copy_block(
        storage, page_3, kv_head, key + 3 * KEYS, last, at, ring.index(slot + 3), KV_HEADS, PAGE, KEYS, PIECE
    )
    copy_rest(
        narrow, page_0, page_1, page_2, page_3, kv_head, key, last, ring, at, slot, KV_HEADS, PAGE, KEYS
    )  # fmt: skip


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
