"""Folding pairs of request and head that several programs share, in Gluon: `attention_fold` says how it is done."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from samebits.numerics.gpu.attention_gluon import HIDDEN, finish

WORD_HALF = gl.constexpr(1 << 16)
TOGETHER_BITS = gl.constexpr(5)
TOGETHER = gl.constexpr(1 << 5)
"""As in `attention_fold`."""


@gluon.jit
def program_of(place, programs, length):
    """See `attention_fold.program_of`."""
    return (((place.to(gl.int64) + 1) * programs - 1) // length).to(gl.int32)


@gluon.jit
def load_factors(tops, totals, number, partials, STRIDE: gl.constexpr):
    """See `attention_fold.load_factors`."""
    wanted = gl.minimum(number, partials - 1) * STRIDE
    return gl.load(tops + wanted, cache_modifier=".cg"), gl.load(totals + wanted, cache_modifier=".cg")


@gluon.jit
def load_accumulators(places, number, partials, D: gl.constexpr, STRIDE: gl.constexpr):
    """Ask for a row's accumulators of a group of partials [TOGETHER, D]."""
    wanted = gl.minimum(number, partials - 1) * (STRIDE * D)
    return gl.load(places + gl.expand_dims(wanted, 1), cache_modifier=".cg")


@gluon.jit
def running_maximum(values, lane):
    """See `attention_fold.running_maximum`."""
    for step in gl.static_range(TOGETHER_BITS):
        values = gl.maximum(values, gl.gather(values, gl.maximum(lane - (1 << step), 0), 0))
    return values


@gluon.jit
def fold_factors(top, tops, totals, lane, exists, factor):
    """See `attention_fold.fold_factors`."""
    after = gl.maximum(top, running_maximum(gl.where(exists, tops, HIDDEN), lane))
    before = gl.where(lane == 0, top, gl.gather(after, gl.maximum(lane - 1, 0), 0))
    keep = gl.exp2((before - after) * factor)
    take = gl.where(exists, gl.exp2((tops - after) * factor), 0.0)
    part = gl.where(exists, totals * take, 0.0)
    return gl.gather(after, lane * 0 + (TOGETHER - 1), 0), keep, take, part


@gluon.jit
def fold_slice(
    output, tops, totals, accumulators, tile, row, begin, partials, first, kv_head, factor, QUERY_HEADS: gl.constexpr,
    GROUP: gl.constexpr, D: gl.constexpr, STRIDE: gl.constexpr,
):  # fmt: skip
    """See `attention_fold.fold_slice`; a slice is a whole row. A group's accumulators are asked for while the group
    ahead is folded, weighted where they arrive, and handed to the threads of their columns through `tile`, float32
    [TOGETHER, D] in shared memory."""
    wide: gl.constexpr = gl.BlockedLayout([1, 4], [128 // D, D // 4], [4, 1], [1, 0])
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [1, 4], [1, 0])
    lane = gl.arange(0, TOGETHER, gl.BlockedLayout([1], [32], [4], [0]))
    number = gl.arange(0, TOGETHER, gl.SliceLayout(1, wide))
    line = begin.to(gl.int64) * STRIDE + row
    tops += line
    totals += line
    places = accumulators + line * D + gl.expand_dims(gl.arange(0, D, gl.SliceLayout(0, wide)), 0)
    top = gl.full([TOGETHER], HIDDEN, gl.float32, lane.type.layout)
    total = gl.zeros([1], gl.float32, gl.SliceLayout(1, layout))
    acc = gl.zeros([1, D], gl.float32, layout)
    group_tops, group_totals = load_factors(tops, totals, lane, partials, STRIDE)
    accs = load_accumulators(places, number, partials, D, STRIDE)
    top, keep, take, part = fold_factors(top, group_tops, group_totals, lane, lane < partials, factor)
    group_tops, group_totals = load_factors(tops, totals, TOGETHER + lane, partials, STRIDE)
    for done in range(0, partials, TOGETHER):
        weighted = accs * gl.expand_dims(gl.convert_layout(take, gl.SliceLayout(1, wide)), 1)
        weighted = gl.where(gl.expand_dims(done + number < partials, 1), weighted, 0.0)
        gl.thread_barrier()
        tile.store(weighted)
        accs = load_accumulators(places, done + TOGETHER + number, partials, D, STRIDE)
        next_tops, next_totals = load_factors(tops, totals, done + 2 * TOGETHER + lane, partials, STRIDE)
        gl.thread_barrier()
        for place in gl.static_range(TOGETHER):
            which = gl.full([1], place, gl.int32, gl.SliceLayout(1, layout))
            of_keep = gl.gather(keep, which, 0)
            total = gl.fma(total, of_keep, gl.gather(part, which, 0))
            acc = gl.fma(acc, gl.expand_dims(of_keep, 1), tile.slice(place, 1).load(layout))
        exists = done + TOGETHER + lane < partials
        top, keep, take, part = fold_factors(top, group_tops, group_totals, lane, exists, factor)
        group_tops, group_totals = next_tops, next_totals
    place = ((first + row // GROUP).to(gl.int64) * QUERY_HEADS + kv_head * GROUP + row % GROUP) * D
    column = gl.expand_dims(gl.arange(0, D, gl.SliceLayout(0, layout)), 0)
    gl.store(output + place + column, finish(total, acc).to(output.dtype.element_ty))


@gluon.jit
def share_fold(
    output, tops, totals, accumulators, tile, arrival, taken, polls, begin, splits, first, count, kv_head, length,
    programs, factor, QUERY_HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, STRIDE: gl.constexpr,
):  # fmt: skip
    """See `attention_fold.share_fold`."""
    slices = count * GROUP
    arrived = gl.atomic_add(arrival, taken, sem="acq_rel", scope="gpu") + taken
    while (arrived < splits) & (polls > 0):
        arrived = gl.atomic_add(arrival, 0, sem="acquire", scope="gpu")
        polls -= 1
    helpers = program_of(begin + splits - 1, programs, length) - program_of(begin, programs, length) + 1
    helpers = gl.minimum(helpers, splits)
    word = arrived
    if arrived == splits:
        word = gl.atomic_add(arrival + 1, 1, sem="relaxed", scope="gpu")
        while word % WORD_HALF < slices:
            fold_slice(
                output, tops, totals, accumulators, tile, word % WORD_HALF, begin, splits, first, kv_head, factor,
                QUERY_HEADS, GROUP, D, STRIDE,
            )  # fmt: skip
            word = gl.atomic_add(arrival + 1, 1, sem="relaxed", scope="gpu")
    else:
        word = gl.atomic_add(arrival + 1, WORD_HALF, sem="relaxed", scope="gpu")
    if gl.maximum(word % WORD_HALF - slices, 0) + word // WORD_HALF + 1 == helpers:
        gl.store(arrival, 0)
        gl.store(arrival + 1, 0)
