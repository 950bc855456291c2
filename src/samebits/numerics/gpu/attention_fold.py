"""Folding a pair of request and head that several programs share (`attention_ranges`).

Partials are folded in ascending order of their splits, by one program or, slice by slice, by all that are at hand.
Who folds what changes no bit: a slice is some columns of a row, and columns do not meet.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.attention_core import HIDDEN, empty_partial, finish, fold, row_places

WORD_HALF = tl.constexpr(1 << 16)
FEW_PARTIALS = tl.constexpr(8)
"""So many are folded by one program, all rows at once: less than it takes to share them."""
TILES_AT_ONCE = tl.constexpr(4)
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
def fold_tile(
    output, tops, totals, accumulators, begin, partials, first, count, kv_head, length, programs, factor,
    QUERY_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr,
    PADDED: tl.constexpr, PINNED: tl.constexpr,
):  # fmt: skip
    """Fold all rows of a cut pair of few partials, which begin at the slot `begin`, and write them."""
    rows = tl.arange(0, PADDED)
    columns = tl.arange(0, WIDTH)
    line = begin.to(tl.int64) * STRIDE + tl.minimum(rows, STRIDE - 1)
    inside = (columns < D)[None, :] & (rows >= 0)[:, None]
    top, total, acc = empty_partial(PADDED, WIDTH)
    for done in range(0, partials, TILES_AT_ONCE):
        loaded = ()
        for place in tl.static_range(TILES_AT_ONCE):
            wanted = line + partial_place(begin, done + place, partials, programs, length, PINNED) * STRIDE
            one_top = tl.load(tops + wanted, cache_modifier=".cg")
            one_total = tl.load(totals + wanted, cache_modifier=".cg")
            places = accumulators + (wanted * D)[:, None] + columns[None, :]
            if D == WIDTH:
                one_acc = tl.load(places, cache_modifier=".cg")
            else:
                one_acc = tl.load(places, mask=inside, other=0.0, cache_modifier=".cg")
            loaded = loaded + ((one_top, one_total, one_acc),)  # type: ignore[assignment]
        for place in tl.static_range(TILES_AT_ONCE):
            one_top, one_total, one_acc = loaded[place]  # type: ignore[misc,var-annotated]
            top, total, acc = fold_existing(
                top, total, acc, one_top, one_total, one_acc, factor, done + place < partials
            )
    places = row_places(
        output, first + rows // GROUP, kv_head * GROUP + rows % GROUP, columns, QUERY_HEADS, D
    )
    result = finish(total, acc).to(output.dtype.element_ty)
    tl.store(places, result, mask=(rows < count * GROUP)[:, None] & inside)


@triton.jit
def fold_existing(top, total, acc, one_top, one_total, one_acc, factor, exists):
    """Fold a partial, if it exists."""
    new_top, new_total, new_acc = fold(top, total, acc, one_top, one_total, one_acc, factor)
    return tl.where(exists, new_top, top), tl.where(exists, new_total, total), tl.where(exists, new_acc, acc)


@triton.jit
def load_factors(
    tops, totals, number, begin, partials, programs, length, STRIDE: tl.constexpr, PINNED: tl.constexpr
):
    """Ask for the maxima and the sums of a row's partials, both as many as `number`."""
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
def running_maximum(values):
    """The maximum of [TOGETHER] values up to each place."""
    lane = tl.arange(0, TOGETHER)
    for step in tl.static_range(TOGETHER_BITS):
        values = tl.maximum(values, tl.gather(values, tl.maximum(lane - (1 << step), 0), 0))
    return values


@triton.jit
def fold_factors(top, tops, totals, exists, factor):
    """What `fold` multiplies by at each partial of a group, side by side: the maximum after the group, the factors of
    what was folded before and of the partial's accumulator, and the partial's part of the sum; all [TOGETHER], and
    1, 0 and 0 where there is no partial. top [TOGETHER]: the maximum before the group, in every place."""
    lane = tl.arange(0, TOGETHER)
    after = tl.maximum(top, running_maximum(tl.where(exists, tops, HIDDEN)))
    before = tl.where(lane == 0, top, tl.gather(after, tl.maximum(lane - 1, 0), 0))
    keep = tl.exp2((before - after) * factor)
    take = tl.where(exists, tl.exp2((tops - after) * factor), 0.0)
    part = tl.where(exists, totals * take, 0.0)
    return tl.gather(after, lane * 0 + (TOGETHER - 1), 0), keep, take, part


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
        top, keep, take, part = fold_factors(top, group_tops, group_totals, lane < left, factor)
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
