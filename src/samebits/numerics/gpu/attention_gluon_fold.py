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
def load_half(places, first, partials, D: gl.constexpr, STRIDE: gl.constexpr):
    """See `attention_fold.load_half`."""
    half = ()
    for place in gl.static_range(TOGETHER // 2):
        wanted = gl.minimum(first + place, partials - 1) * (STRIDE * D)
        half = half + (gl.load(places + wanted, cache_modifier=".cg"),)  # type: ignore[assignment]
    return half


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
def fold_half(total, acc, half, keep, take, part, lane, partials, FIRST: gl.constexpr):
    """See `attention_fold.fold_half`."""
    for place in gl.static_range(TOGETHER // 2):
        which = lane * 0 + (FIRST + place)
        of_keep = gl.gather(keep, which, 0)
        total = gl.fma(total, of_keep, gl.gather(part, which, 0))
        weighted = half[place] * gl.expand_dims(gl.gather(take, which, 0), 1)
        acc = gl.fma(acc, gl.expand_dims(of_keep, 1), gl.where(FIRST + place < partials, weighted, 0.0))
    return total, acc


@gluon.jit
def fold_slice(
    output, tops, totals, accumulators, row, begin, partials, first, kv_head, factor, QUERY_HEADS: gl.constexpr,
    GROUP: gl.constexpr, D: gl.constexpr, STRIDE: gl.constexpr,
):  # fmt: skip
    """See `attention_fold.fold_slice`; a slice is a whole row."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [1, 4], [0, 1])
    lanes: gl.constexpr = gl.SliceLayout(1, layout)
    lane = gl.arange(0, TOGETHER, lanes)
    columns = gl.arange(0, D // TOGETHER, gl.SliceLayout(0, layout)) * TOGETHER
    columns = gl.expand_dims(lane, 1) + gl.expand_dims(columns, 0)
    line = begin.to(gl.int64) * STRIDE + row
    tops += line
    totals += line
    places = accumulators + line * D + columns
    top = gl.full([TOGETHER], HIDDEN, gl.float32, lanes)
    total = gl.zeros([TOGETHER], gl.float32, lanes)
    acc = gl.zeros([TOGETHER, D // TOGETHER], gl.float32, layout)
    group_tops, group_totals = load_factors(tops, totals, lane, partials, STRIDE)
    early = load_half(places, 0, partials, D, STRIDE)
    for done in range(0, partials, TOGETHER):
        late = load_half(places, done + TOGETHER // 2, partials, D, STRIDE)
        left = partials - done
        top, keep, take, part = fold_factors(top, group_tops, group_totals, lane, lane < left, factor)
        group_tops, group_totals = load_factors(tops, totals, done + TOGETHER + lane, partials, STRIDE)
        total, acc = fold_half(total, acc, early, keep, take, part, lane, left, 0)
        early = load_half(places, done + TOGETHER, partials, D, STRIDE)
        total, acc = fold_half(total, acc, late, keep, take, part, lane, left, TOGETHER // 2)
    place = ((first + row // GROUP).to(gl.int64) * QUERY_HEADS + kv_head * GROUP + row % GROUP) * D
    gl.store(output + place + columns, finish(total, acc).to(output.dtype.element_ty))


@gluon.jit
def share_fold(
    output, tops, totals, accumulators, arrival, taken, polls, begin, splits, first, count, kv_head, length, programs,
    factor, QUERY_HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, STRIDE: gl.constexpr,
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
                output, tops, totals, accumulators, word % WORD_HALF, begin, splits, first, kv_head, factor,
                QUERY_HEADS, GROUP, D, STRIDE,
            )  # fmt: skip
            word = gl.atomic_add(arrival + 1, 1, sem="relaxed", scope="gpu")
    else:
        word = gl.atomic_add(arrival + 1, WORD_HALF, sem="relaxed", scope="gpu")
    if gl.maximum(word % WORD_HALF - slices, 0) + word // WORD_HALF + 1 == helpers:
        gl.store(arrival, 0)
        gl.store(arrival + 1, 0)
