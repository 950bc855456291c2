"""Attention of few rows over long contexts: a fixed number of programs share all splits evenly (decode, verify).

A *unit* is a tile of query rows of one request; a *pair* is a unit and a key-value head. All splits of all pairs
stand in one line, pair after pair; program i of n walks the i-th n-th of it, or of the pairs where that is nearly as
even. A pair that lies in one program's range is folded there. A range is walked from its last pair to its first, so
that of a pair cut in two its beginning is the first that one program does and its end the last that the next one does:
the fold of the beginning is handed on, and the end goes on with it. What a program has computed before it is handed
what comes ahead, it keeps as partials of splits. Of a pair that more than a few programs share, every split's partial
is written, and folded when all are there (`attention_fold`). So the cost follows the real lengths, which are read on
the device, and one captured graph serves any.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.attention_core import (
    HIDDEN,
    attend,
    empty_partial,
    empty_split,
    finish,
    fold,
    fold_lanes,
    load_block,
    row_places,
    score,
    tile_rows,
)
from samebits.numerics.gpu.attention_fold import fold_cut_pair, program_of, range_start
from samebits.numerics.gpu.dependent import allow_next, publish, wait_only

UNITS_AT_ONCE = tl.constexpr(256)
SHARERS = tl.constexpr(3)
"""So many programs of a pair hand on its fold, one after another."""
PLAN_WORDS = tl.constexpr(16)
"""int32 of a program's plan: first place in the line, end; of the last pair: unit, end among the unit's heads and
splits; whether pairs are cut; of the unit: splits, first row, rows, request, last position; the first page; splits of
all units."""


@triton.jit
def unit_splits(positions, unit_first, unit_count, unit, known, SPLIT: tl.constexpr):
    """How many splits each unit's keys fill; 0 for units without rows."""
    count = tl.load(unit_count + unit, mask=known, other=0)
    first = tl.load(unit_first + unit, mask=known, other=0)
    exists = known & (count > 0)
    last = tl.load(positions + first + count - 1, mask=exists, other=0).to(tl.int32)
    return tl.where(exists, last // SPLIT + 1, 0)


@triton.jit
def count_splits(positions, unit_first, unit_count, split_start, units, SPLIT: tl.constexpr):
    """(splits of all units, those of the longest, units that have any). The first program writes the splits
    before each unit into split_start int32 [units + 1], but not the last word."""
    program = tl.program_id(0)
    total = tl.zeros((), tl.int32)
    longest = tl.zeros((), tl.int32)
    filled = tl.zeros((), tl.int32)
    for block in range(0, units, UNITS_AT_ONCE):
        unit = block + tl.arange(0, UNITS_AT_ONCE)
        splits = unit_splits(positions, unit_first, unit_count, unit, unit < units, SPLIT)
        before = total + tl.cumsum(splits, 0) - splits
        if program == 0:
            tl.store(split_start + unit, before, mask=unit < units)
        total += tl.sum(splits, 0)
        longest = tl.maximum(longest, tl.max(splits, 0))
        filled += tl.sum((splits > 0).to(tl.int32), 0)
    return total, longest, filled


@triton.jit
def sharers(begin, splits, programs, length):
    """(the first program whose range holds some of a pair that begins at a place of the line, whether its fold is
    handed on from there to the last): where they are few, and where no range between them is empty."""
    first = program_of(begin, programs, length)
    count = program_of(begin + splits - 1, programs, length) - first + 1
    return first, (count <= SHARERS) & (length >= programs)


@triton.jit
def kept_splits(pair, start, end, place, taken, program, programs, length):
    """How many splits of its piece of a pair a program keeps as partials, for the fold of those ahead is not there yet:
    the program ahead does what it has of the pair first. `start` and `end` of this program's range, of which it has
    done what lies behind `place`; `pair` is where the pair begins."""
    ahead = start - tl.maximum(range_start(program - 1, programs, length).to(tl.int32), pair)
    return tl.minimum(tl.maximum(ahead - (end - place), 0), taken)


@triton.jit
def whole_pairs_pay(length, longest, pairs, programs, capacity):
    """Whether no pair shall be cut: their partials have no room, or as many whole pairs for each program are nearly
    even."""
    most = (pairs + programs - 1) // programs * longest
    return (length > capacity) | (most.to(tl.int64) * programs * 5 <= length * 6)


@triton.jit
def pair_start(pair, positions, unit_first, unit_count, units, KV_HEADS: tl.constexpr, SPLIT: tl.constexpr):
    """The place in the line at which a pair begins, counted over the units that have rows. int64."""
    wanted, head = pair // KV_HEADS, pair % KV_HEADS
    filled = tl.zeros((), tl.int32)
    place = tl.zeros((), tl.int32)
    for block in range(0, units, UNITS_AT_ONCE):
        unit = block + tl.arange(0, UNITS_AT_ONCE)
        splits = unit_splits(positions, unit_first, unit_count, unit, unit < units, SPLIT)
        exists = (splits > 0).to(tl.int32)
        number = filled + tl.cumsum(exists, 0) - exists
        ahead = tl.where(number < wanted, splits * KV_HEADS, 0)
        place += tl.sum(ahead + tl.where(number == wanted, splits * head, 0), 0)
        filled += tl.sum(exists, 0)
    return place.to(tl.int64)


@triton.jit
def page_of(page_table, request, table_width, key, PAGE: tl.constexpr):
    """The page that holds absolute key `key` of a request. int32."""
    return tl.load(page_table + request.to(tl.int64) * table_width + key // PAGE)


@triton.jit
def first_split(offset, splits, left, may_cut):
    """The first split that a program does of the pair that ends, for it, at `offset` among its unit's heads and
    splits; `left` of its range are left."""
    ending = (offset - 1) % splits + 1
    return tl.where(may_cut, tl.maximum(ending - left, 0), 0)


@triton.jit
def plan_ranges(
    positions,
    unit_first,
    unit_count,
    unit_request,
    split_start,
    plans,
    page_table,
    units,
    capacity,
    table_width,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (programs,). Writes split_start int32 [units + 1], the splits before each unit, and this program's plan,
    int32 [programs, PLAN_WORDS]."""
    wait_only(DEPENDENT)
    program, programs = tl.program_id(0), tl.num_programs(0)
    total, longest, filled = count_splits(positions, unit_first, unit_count, split_start, units, SPLIT)
    if program == 0:
        tl.store(split_start + units, total)
    length = total.to(tl.int64) * KV_HEADS
    pairs = filled * KV_HEADS
    whole = whole_pairs_pay(length, longest, pairs, programs, capacity)
    start, end = range_start(program, programs, length), range_start(program + 1, programs, length)
    if whole:
        first_pair = range_start(program, programs, pairs).to(tl.int32)
        next_pair = range_start(program + 1, programs, pairs).to(tl.int32)
        start = pair_start(first_pair, positions, unit_first, unit_count, units, KV_HEADS, SPLIT)
        end = pair_start(next_pair, positions, unit_first, unit_count, units, KV_HEADS, SPLIT)
    passed = tl.zeros((), tl.int32)
    found = tl.zeros((), tl.int32)
    base = tl.zeros((), tl.int32)
    for block in range(0, units, UNITS_AT_ONCE):
        unit = block + tl.arange(0, UNITS_AT_ONCE)
        splits = unit_splits(positions, unit_first, unit_count, unit, unit < units, SPLIT)
        ends = passed + tl.cumsum(splits, 0)
        behind = (unit < units) & (ends.to(tl.int64) * KV_HEADS < end)
        found += tl.sum(behind.to(tl.int32), 0)
        base = tl.maximum(base, tl.max(tl.where(behind, ends, 0), 0))
        passed += tl.sum(splits, 0)
    offset = (end - base.to(tl.int64) * KV_HEADS).to(tl.int32)
    plan = plans + program * PLAN_WORDS
    if start < end:
        splits = unit_splits(positions, unit_first, unit_count, found, True, SPLIT)
        first, count = tl.load(unit_first + found), tl.load(unit_count + found)
        tl.store(plan + 2, found)
        tl.store(plan + 3, offset)
        tl.store(plan + 4, (~whole).to(tl.int32))
        tl.store(plan + 11, total)
        tl.store(plan + 5, splits)
        tl.store(plan + 6, first)
        tl.store(plan + 7, count)
        request = tl.load(unit_request + found)
        tl.store(plan + 8, request)
        tl.store(plan + 9, tl.load(positions + first + count - 1).to(tl.int32))
        begin = first_split(offset, splits, (end - start).to(tl.int32), True)
        tl.store(plan + 10, page_of(page_table, request, table_width, begin * SPLIT, PAGE))
    tl.store(plan, start.to(tl.int32))
    tl.store(plan + 1, end.to(tl.int32))
    publish(DEPENDENT)


@triton.jit
def store_partial(
    tops, totals, accumulators, slot, top, total, acc, exists, D: tl.constexpr, STRIDE: tl.constexpr
):
    """Write a partial to its slot; STRIDE rows a slot."""
    rows = tl.arange(0, top.shape[0])
    columns = tl.arange(0, acc.shape[1])
    place = slot.to(tl.int64) * STRIDE + rows
    tl.store(tops + place, top, mask=exists)
    tl.store(totals + place, total, mask=exists)
    places = accumulators + (place * D)[:, None] + columns[None, :]
    tl.store(places, acc, mask=exists[:, None] & (columns < D)[None, :])


@triton.jit
def load_partial(
    tops, totals, accumulators, slot, exists, D: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr
):
    """The partial of a slot: maximum, sum and accumulator."""
    columns = tl.arange(0, WIDTH)
    place = slot.to(tl.int64) * STRIDE + tl.arange(0, exists.shape[0])
    top = tl.load(tops + place, mask=exists, other=HIDDEN, cache_modifier=".cg")
    total = tl.load(totals + place, mask=exists, other=0.0, cache_modifier=".cg")
    places = accumulators + (place * D)[:, None] + columns[None, :]
    wanted = exists[:, None] & (columns < D)[None, :]
    return top, total, tl.load(places, mask=wanted, other=0.0, cache_modifier=".cg")


@triton.jit
def take_up(
    tops, totals, accumulators, arrival, number, pair, kept, count, exists, factor,
    D: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """The fold of a pair up to and with the `count` splits whose partials this program has kept from the slot `kept`
    on, once the program ahead, the pair's `number`-th, has handed its own on."""
    handed = tl.atomic_add(arrival, 0, sem="acquire", scope="gpu")
    while handed < number:
        handed = tl.atomic_add(arrival, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
    top, total, acc = load_partial(tops, totals, accumulators, pair, exists, D, WIDTH, STRIDE)
    for place in range(count):
        split_top, split_total, split_acc = load_partial(
            tops, totals, accumulators, kept + place, exists, D, WIDTH, STRIDE
        )
        top, total, acc = fold(top, total, acc, split_top, split_total, split_acc, factor)
    return top, total, acc


@triton.jit
def hand_on(
    tops, totals, accumulators, arrival, pair, top, total, acc, exists, D: tl.constexpr, STRIDE: tl.constexpr
):
    """Give the fold of a pair so far to the next of its programs, in the slot of its first split, whose own partial
    nobody writes."""
    tl.debug_barrier()
    store_partial(tops, totals, accumulators, pair, top, total, acc, exists, D, STRIDE)
    tl.debug_barrier()
    tl.atomic_add(arrival, 1, sem="release", scope="gpu")


@triton.jit
def attention_ranges(
    queries,
    keys,
    values,
    output,
    positions,
    unit_first,
    unit_count,
    unit_request,
    split_start,
    plans,
    page_table,
    tops,
    totals,
    accumulators,
    arrivals,
    units,
    table_width,
    factor,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDED: tl.constexpr,
    PINNED: tl.constexpr,
    STAGES: tl.constexpr,
    POLLS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (programs,). Partials lie in tops and totals float32 [capacity, STRIDE] and accumulators float32
    [capacity, STRIDE, D]; `arrivals` int32 [units * KV_HEADS, 2] counts, of each pair, the programs that have handed
    on or what `fold_cut_pair` counts, and is zero before and after. A program waits for none but the one ahead of it,
    which was started before it. Without PINNED a range's splits make one partial, so that results follow the batch: for
    the profile that promises nothing."""
    allow_next(DEPENDENT)
    group: tl.constexpr = QUERY_HEADS // KV_HEADS
    program, programs = tl.program_id(0), tl.num_programs(0)
    # What `plan_ranges` wrote, and found, may be read before the wait.
    plan = plans + program * PLAN_WORDS
    start, end = tl.load(plan), tl.load(plan + 1)
    unit, offset, may_cut = tl.load(plan + 2), tl.load(plan + 3), tl.load(plan + 4) != 0
    splits, first, count = tl.load(plan + 5), tl.load(plan + 6), tl.load(plan + 7)
    request, last, page = tl.load(plan + 8), tl.load(plan + 9), tl.load(plan + 10)
    length = tl.load(plan + 11).to(tl.int64) * KV_HEADS
    wait_only(DEPENDENT)
    columns = tl.arange(0, WIDTH)
    place = end
    while start < place:
        kv_head = (offset - 1) // splits
        begin = first_split(offset, splits, place - start, may_cut)
        taken = offset - kv_head * splits - begin
        pair = place - taken - begin
        rows, heads, position, exists = tile_rows(positions, first, count, kv_head, group, ROWS)
        wanted = exists[:, None] & (columns < D)[None, :]
        q = tl.load(row_places(queries, rows, heads, columns, QUERY_HEADS, D), mask=wanted, other=0.0)
        arrival = arrivals + (unit * KV_HEADS + kv_head) * 2
        is_whole = taken == splits
        number, hands_on, kept = 0, False, 0
        if PINNED:
            if not is_whole:
                first_program, hands_on = sharers(pair, splits, programs, length)
                number, kept = program - first_program, taken
                if hands_on:
                    kept = 0
                    if begin > 0:
                        kept = kept_splits(pair, start, end, place, taken, program, programs, length)
        top, total, acc = empty_partial(ROWS, WIDTH)
        split_top, lanes, split_acc = empty_split(ROWS, WIDTH)
        stop = tl.minimum((begin + taken) * SPLIT, last + 1)
        pages = page_table + request.to(tl.int64) * table_width
        # First what is kept, where anything is, then the rest.
        for is_folded in range(tl.where(kept > 0, 0, 1), 2):
            run, run_stop = begin * SPLIT, (begin + kept) * SPLIT
            if is_folded == 1:
                run, run_stop = run_stop, stop
                if hands_on & (begin > 0):
                    top, total, acc = take_up(
                        tops, totals, accumulators, arrival, number, pair, pair + begin, kept, exists, factor, D, WIDTH,
                        STRIDE,
                    )  # fmt: skip
            for key in tl.range(run, tl.minimum(run_stop, stop), KEYS, num_stages=STAGES):
                where = (page.to(tl.int64) * KV_HEADS + kv_head) * PAGE + key % PAGE
                # A block ahead, so that keys and values do not wait for it.
                page = tl.load(pages + (key + KEYS) // PAGE, mask=key + KEYS < stop, other=0)
                k = load_block(keys, where, key, last, D, WIDTH, KEYS, True)
                v = load_block(values, where, key, last, D, WIDTH, KEYS, True)
                visible = (key + tl.arange(0, KEYS))[None, :] <= position[:, None]
                split_top, lanes, split_acc = attend(
                    score(q, k), v, split_top, lanes, split_acc, visible, factor, True, KEYS
                )
                if ((key + KEYS) % SPLIT == 0) | (key + KEYS >= stop):
                    split_total = fold_lanes(lanes)
                    if is_folded == 1:
                        top, total, acc = fold(top, total, acc, split_top, split_total, split_acc, factor)
                    else:
                        store_partial(
                            tops, totals, accumulators, pair + key // SPLIT, split_top, split_total, split_acc, exists,
                            D, STRIDE,
                        )  # fmt: skip
                    split_top, lanes, split_acc = empty_split(ROWS, WIDTH)
        place -= taken
        offset -= taken
        if is_whole | (hands_on & (begin + taken == splits)):
            if hands_on:
                tl.store(arrival, 0)
            result = finish(total, acc).to(output.dtype.element_ty)
            tl.store(row_places(output, rows, heads, columns, QUERY_HEADS, D), result, mask=wanted)
        elif hands_on:
            hand_on(tops, totals, accumulators, arrival, pair, top, total, acc, exists, D, STRIDE)
        else:
            if not PINNED:
                store_partial(tops, totals, accumulators, place, top, total, acc, exists, D, STRIDE)
            tl.debug_barrier()
            # Who has more to do does not wait.
            polls = tl.where(place == start, POLLS, 0)
            fold_cut_pair(
                output, tops, totals, accumulators, arrival, taken, polls, pair, splits, first, count, kv_head, length,
                programs, factor, QUERY_HEADS, group, D, WIDTH, STRIDE, PADDED, PINNED,
            )  # fmt: skip
        if (offset == 0) & (start < place):
            unit -= 1
            splits = tl.load(split_start + unit + 1) - tl.load(split_start + unit)
            while splits == 0:
                unit -= 1
                splits = tl.load(split_start + unit + 1) - tl.load(split_start + unit)
            offset = splits * KV_HEADS
            first, count = tl.load(unit_first + unit), tl.load(unit_count + unit)
            request = tl.load(unit_request + unit)
            last = tl.load(positions + first + count - 1).to(tl.int32)
        if start < place:
            begin = first_split(offset, splits, place - start, may_cut)
            page = page_of(page_table, request, table_width, begin * SPLIT, PAGE)
