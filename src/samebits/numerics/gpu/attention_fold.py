"""Folding a pair of request and head that several programs share (`attention_ranges`).

Partials are folded in ascending order of their splits, by one program or, slice by slice, by all that are at hand.
Who folds what changes no bit: a slice is some columns of a row, and columns do not meet.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.attention_core import HIDDEN, empty_partial, finish

WORD_HALF = tl.constexpr(1 << 16)
FEW_PARTIALS = tl.constexpr(8)
"""So many are folded by one program, all rows at once: less than it takes to share them."""
TILES_AT_ONCE = tl.constexpr(8)
TOGETHER_BITS = tl.constexpr(5)
TOGETHER = tl.constexpr(1 << 5)
"""Partials of a group, of which each has a lane of a warp."""


@triton.jit
def range_start(program, programs, length):
    """The first place in the line that belongs to a program. int64."""
    return program.to(tl.int64) * length // programs


@triton.jit
def program_of(place, programs, length):
    """The program whose range holds a place of the line. int32."""
    return (((place.to(tl.int64) + 1) * programs - 1) // length).to(tl.int32)


@triton.jit
def partial_place(begin, number, partials, programs, length, PINNED: tl.constexpr):
    """Where a pair's partial lies behind the slot `begin`: that of every split, or that of every range. The last one
    again where there are no more, for a load that may be left out would be waited for. int32."""
    place = tl.minimum(number, partials - 1)
    if not PINNED:
        if length >= programs:
            program = program_of(begin, programs, length) + place
            place = tl.maximum(range_start(program, programs, length).to(tl.int32) - begin, 0)
    return place


@triton.jit
def load_factors(
    tops, totals, number, begin, partials, programs, length, STRIDE: tl.constexpr, PINNED: tl.constexpr
):
    """Ask for the maxima and the sums of partials, in the shape of `number`."""
    wanted = partial_place(begin, number, partials, programs, length, PINNED) * STRIDE
    return tl.load(tops + wanted, cache_modifier=".cg"), tl.load(totals + wanted, cache_modifier=".cg")


@triton.jit
def load_half(
    places, first, begin, partials, programs, length, inside, D: tl.constexpr, COLUMNS: tl.constexpr,
    STRIDE: tl.constexpr, PINNED: tl.constexpr,
):  # fmt: skip
    """Ask for the accumulators of half a group's partials from `first` on, each [TOGETHER, COLUMNS / TOGETHER]."""
    half = ()
    for place in tl.static_range(TOGETHER // 2):
        wanted = partial_place(begin, first + place, partials, programs, length, PINNED) * (STRIDE * D)
        if D % COLUMNS == 0:
            acc = tl.load(places + wanted, cache_modifier=".cg")
        else:
            acc = tl.load(places + wanted, mask=inside, other=0.0, cache_modifier=".cg")
        half = half + (acc,)  # type: ignore[assignment]
    return half


@triton.jit
def running_maximum(values, lane):
    """The maximum of values [TOGETHER, ...] up to each place `lane` of the first axis."""
    for step in tl.static_range(TOGETHER_BITS):
        values = tl.maximum(values, tl.gather(values, tl.maximum(lane - (1 << step), 0), 0))
    return values


@triton.jit
def fold_factors(top, tops, totals, lane, left, factor):
    """What `fold` multiplies by at each of a group's `left` partials, side by side: the maxima after each, the factors
    of what was folded before and of the partial's accumulator, and the partial's part of the sum; all
    [TOGETHER, ...], and the last three 1, 0 and 0 where there is no partial. top: the maximum before the group, in
    every place; lane: each place's number in the group."""
    exists = lane < left
    after = tl.maximum(top, running_maximum(tl.where(exists, tops, HIDDEN), lane))
    before = tl.where(lane == 0, top, tl.gather(after, tl.maximum(lane - 1, 0), 0))
    keep = tl.exp2((before - after) * factor)
    take = tl.where(exists, tl.exp2((tops - after) * factor), 0.0)
    return after, keep, take, tl.where(exists, totals * take, 0.0)


@triton.jit
def fold_half(total, acc, half, keep, take, part, partials, FIRST: tl.constexpr):
    """Fold half a group's partials, which begin at the group's place FIRST; `partials` are left in the group."""
    lane = tl.arange(0, TOGETHER)
    for place in tl.static_range(TOGETHER // 2):
        which = lane * 0 + (FIRST + place)
        of_keep = tl.gather(keep, which, 0)
        total = tl.fma(total, of_keep, tl.gather(part, which, 0))
        weighted = half[place] * tl.gather(take, which, 0)[:, None]
        acc = tl.fma(acc, of_keep[:, None], tl.where(FIRST + place < partials, weighted, 0.0))
    return total, acc


@triton.jit
def fold_slice(
    output, tops, totals, accumulators, number, begin, partials, first, kv_head, length, programs, factor,
    QUERY_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
    STRIDE: tl.constexpr, PINNED: tl.constexpr,
):  # fmt: skip
    """Fold COLUMNS columns of one row of a cut pair, whose partials begin at the slot `begin`, and write them. The
    factors of a group of partials, which follow from their maxima alone, are computed side by side. Accumulators, which
    other programs have just written, are asked for half a group ahead."""
    lane = tl.arange(0, TOGETHER)
    row = number // PARTS
    columns = number % PARTS * COLUMNS + tl.arange(0, COLUMNS // TOGETHER) * TOGETHER
    columns = lane[:, None] + columns[None, :]
    inside = columns < D
    line = begin.to(tl.int64) * STRIDE + row
    tops += line
    totals += line
    places = accumulators + line * D + columns
    top, total, acc = empty_partial(TOGETHER, COLUMNS // TOGETHER)
    group_tops, group_totals = load_factors(
        tops, totals, lane, begin, partials, programs, length, STRIDE, PINNED
    )
    early = load_half(places, 0, begin, partials, programs, length, inside, D, COLUMNS, STRIDE, PINNED)
    for done in range(0, partials, TOGETHER):
        late = load_half(
            places,
            done + TOGETHER // 2,
            begin,
            partials,
            programs,
            length,
            inside,
            D,
            COLUMNS,
            STRIDE,
            PINNED,
        )
        left, following = partials - done, done + TOGETHER
        after, keep, take, part = fold_factors(top, group_tops, group_totals, lane, left, factor)
        top = tl.gather(after, lane * 0 + (TOGETHER - 1), 0)
        group_tops, group_totals = load_factors(
            tops, totals, following + lane, begin, partials, programs, length, STRIDE, PINNED
        )
        total, acc = fold_half(total, acc, early, keep, take, part, left, 0)
        early = load_half(
            places, following, begin, partials, programs, length, inside, D, COLUMNS, STRIDE, PINNED
        )
        total, acc = fold_half(total, acc, late, keep, take, part, left, TOGETHER // 2)
    place = ((first + row // GROUP).to(tl.int64) * QUERY_HEADS + kv_head * GROUP + row % GROUP) * D
    tl.store(output + place + columns, finish(total, acc).to(output.dtype.element_ty), mask=inside)


@triton.jit
def fold_tile(
    output, tops, totals, accumulators, begin, partials, first, count, kv_head, length, programs, factor,
    QUERY_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr,
    PADDED: tl.constexpr, PINNED: tl.constexpr,
):  # fmt: skip
    """Fold all rows of a cut pair of at most TOGETHER partials, which begin at the slot `begin`, and write them."""
    EACH: tl.constexpr = (WIDTH + TOGETHER - 1) // TOGETHER
    rows = tl.arange(0, PADDED)
    lane = tl.broadcast_to(tl.arange(0, TOGETHER)[:, None], (TOGETHER, PADDED))
    columns = (tl.arange(0, TOGETHER) * EACH)[:, None, None] + tl.arange(0, EACH)[None, None, :]
    inside = (columns < D) & (rows >= 0)[None, :, None]
    line = begin.to(tl.int64) * STRIDE + tl.minimum(rows, STRIDE - 1)
    group_tops, group_totals = load_factors(
        tops + line[None, :], totals + line[None, :], lane, begin, partials, programs, length, STRIDE, PINNED
    )
    top = tl.full((TOGETHER, PADDED), HIDDEN, tl.float32)
    _, keep, take, part = fold_factors(top, group_tops, group_totals, lane, partials, factor)
    total = tl.zeros((TOGETHER, PADDED), tl.float32)
    acc = tl.zeros((TOGETHER, PADDED, EACH), tl.float32)
    places = accumulators + (line * D)[None, :, None] + columns
    for done in range(0, partials, TILES_AT_ONCE):
        loaded = ()
        for place in tl.static_range(TILES_AT_ONCE):
            slot = partial_place(begin, done + place, partials, programs, length, PINNED) * (STRIDE * D)
            if D == EACH * TOGETHER:
                one = tl.load(places + slot, cache_modifier=".cg")
            else:
                one = tl.load(places + slot, mask=inside, other=0.0, cache_modifier=".cg")
            loaded = loaded + (one,)  # type: ignore[assignment]
        for place in tl.static_range(TILES_AT_ONCE):
            which = lane * 0 + (done + place)
            of_keep = tl.gather(keep, which, 0)
            total = tl.fma(total, of_keep, tl.gather(part, which, 0))
            weighted = loaded[place] * tl.gather(take, which, 0)[:, :, None]
            acc = tl.fma(acc, of_keep[:, :, None], tl.where(done + place < partials, weighted, 0.0))
    heads = kv_head * GROUP + rows % GROUP
    places = (
        output + (((first + rows // GROUP).to(tl.int64) * QUERY_HEADS + heads) * D)[None, :, None] + columns
    )
    result = finish(total, acc).to(output.dtype.element_ty)
    tl.store(places, result, mask=(rows < count * GROUP)[None, :, None] & inside)


@triton.jit
def fold_cut_pair(
    output, tops, totals, accumulators, arrival, taken, polls, begin, splits, first, count, kv_head, length, programs,
    factor, QUERY_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    STRIDE: tl.constexpr, PADDED: tl.constexpr, PINNED: tl.constexpr,
):  # fmt: skip
    """Tell that `taken` splits of a cut pair are written, and fold it, or help to, if all are. Few partials are
    folded by the program that comes last; for many, a program that has nothing else to do waits for `polls` looks."""
    arrived = tl.atomic_add(arrival, taken, sem="acq_rel", scope="gpu") + taken
    helpers = program_of(begin + splits - 1, programs, length) - program_of(begin, programs, length) + 1
    helpers = tl.minimum(helpers, splits)
    partials = splits if PINNED else helpers
    if partials > FEW_PARTIALS:
        share_fold(
            output, tops, totals, accumulators, arrival, arrived, helpers, polls, begin, splits, partials, first,
            count, kv_head, length, programs, factor, QUERY_HEADS, GROUP, D, WIDTH, STRIDE, PINNED,
        )  # fmt: skip
    elif arrived == splits:
        tl.store(arrival, 0)
        fold_tile(
            output, tops, totals, accumulators, begin, partials, first, count, kv_head, length, programs, factor,
            QUERY_HEADS, GROUP, D, WIDTH, STRIDE, PADDED, PINNED,
        )  # fmt: skip


@triton.jit
def share_fold(
    output, tops, totals, accumulators, arrival, arrived, helpers, polls, begin, splits, partials, first, count,
    kv_head, length, programs, factor, QUERY_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, PINNED: tl.constexpr,
):  # fmt: skip
    """Fold slices of a pair together with the other programs that wrote its partials, once all have. Who comes last
    finds all of them and folds what nobody has taken, so nobody has to be waited for.

    Two words count: splits that have arrived; and slices taken (low half, one more for each program that found none
    left) with programs that did not wait (high half). Who leaves last sets both to zero.
    """
    SLICE: tl.constexpr = 64 if WIDTH > 32 else 32
    PARTS: tl.constexpr = (WIDTH + SLICE - 1) // SLICE
    slices = count * GROUP * PARTS
    while (arrived < splits) & (polls > 0):
        arrived = tl.atomic_add(arrival, 0, sem="acquire", scope="gpu")
        polls -= 1
    if arrived == splits:
        word = tl.atomic_add(arrival + 1, 1, sem="relaxed", scope="gpu")
        while word % WORD_HALF < slices:
            fold_slice(
                output, tops, totals, accumulators, word % WORD_HALF, begin, partials, first, kv_head, length,
                programs, factor, QUERY_HEADS, GROUP, D, SLICE, PARTS, STRIDE, PINNED,
            )  # fmt: skip
            word = tl.atomic_add(arrival + 1, 1, sem="relaxed", scope="gpu")
    else:
        word = tl.atomic_add(arrival + 1, WORD_HALF, sem="relaxed", scope="gpu")
    if tl.maximum(word % WORD_HALF - slices, 0) + word // WORD_HALF + 1 == helpers:
        tl.store(arrival, 0)
        tl.store(arrival + 1, 0)
