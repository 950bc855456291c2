"""Folding pairs of request and head that several programs share, in Gluon: `attention_fold` says how it is done."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from samebits.numerics.gpu.attention_gluon import HIDDEN, finish_row, fold_row

WORD_HALF = gl.constexpr(1 << 16)
COLUMNS = gl.constexpr(64)
"""Columns of a slice."""


@gluon.jit
def program_of(place, programs, length):
    """See `attention_fold.program_of`."""
    return (((place.to(gl.int64) + 1) * programs - 1) // length).to(gl.int32)


@gluon.jit
def fold_slice(
    output, tops, totals, accumulators, number, begin, partials, first, kv_head, factor, QUERY_HEADS: gl.constexpr,
    GROUP: gl.constexpr, D: gl.constexpr, STRIDE: gl.constexpr, UNROLL: gl.constexpr,
):  # fmt: skip
    """See `attention_fold.fold_slice`."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    parts: gl.constexpr = D // COLUMNS
    row = number // parts
    columns = number % parts * COLUMNS + gl.arange(0, COLUMNS, layout)
    line = begin.to(gl.int64) * STRIDE + row
    tops += line
    totals += line
    places = accumulators + line * D + columns
    acc = gl.zeros([COLUMNS], gl.float32, layout)
    top = acc + HIDDEN
    total = acc
    for done in range(0, partials, UNROLL):
        loaded = ()
        for place in gl.static_range(UNROLL):
            wanted = gl.minimum(done + place, partials - 1)
            one_top = gl.load(tops + wanted * STRIDE, cache_modifier=".cg")
            one_total = gl.load(totals + wanted * STRIDE, cache_modifier=".cg")
            one_acc = gl.load(places + wanted * (STRIDE * D), cache_modifier=".cg")
            loaded = loaded + ((one_top, one_total, one_acc),)  # type: ignore[assignment]
        for place in gl.static_range(UNROLL):
            exists = done + place < partials
            one_top, one_total, one_acc = loaded[place]  # type: ignore[misc,var-annotated]
            new_top, new_total, new_acc = fold_row(top, total, acc, one_top, one_total, one_acc, factor)
            top = gl.where(exists, new_top, top)
            total = gl.where(exists, new_total, total)
            acc = gl.where(exists, new_acc, acc)
    result = finish_row(total, acc)
    place = ((first + row // GROUP).to(gl.int64) * QUERY_HEADS + kv_head * GROUP + row % GROUP) * D
    gl.store(output + place + columns, result.to(output.dtype.element_ty))


@gluon.jit
def share_fold(
    output, tops, totals, accumulators, arrival, taken, polls, begin, splits, first, count, kv_head, length, programs,
    factor, QUERY_HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, STRIDE: gl.constexpr,
    UNROLL: gl.constexpr,
):  # fmt: skip
    """See `attention_fold.share_fold`."""
    slices = count * GROUP * (D // COLUMNS)
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
                QUERY_HEADS, GROUP, D, STRIDE, UNROLL,
            )  # fmt: skip
            word = gl.atomic_add(arrival + 1, 1, sem="relaxed", scope="gpu")
    else:
        word = gl.atomic_add(arrival + 1, WORD_HALF, sem="relaxed", scope="gpu")
    if gl.maximum(word % WORD_HALF - slices, 0) + word // WORD_HALF + 1 == helpers:
        gl.store(arrival, 0)
        gl.store(arrival + 1, 0)
