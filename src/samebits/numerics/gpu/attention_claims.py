"""Attention of decoding rows where whoever is free claims what comes next: what the claims are, and their order.

A claim is a *run* of splits of a pair of unit and key-value head, and there are three ways to cut pairs into runs:

- *whole*: a pair is one claim, where as many for each program are nearly even.
- *chained*: runs of several splits. Whoever claims a run goes on with the fold of the run before, which was claimed
  long ago: runs of all pairs are claimed side by side, each pair's as evenly over all claims as its length allows. So
  where no pair is longer than what a program has to do on average, nobody waits for long.
- *cut*: single splits, whose partials are folded by others while keys and values still stream. All first splits of all
  pairs are claimed first, then all second ones, so that partials of every pair become complete in ascending order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.attention_ranges import (
    UNITS_AT_ONCE,
    count_splits,
    unit_splits,
    whole_pairs_pay,
)
from samebits.numerics.gpu.dependent import publish, wait_only

CLAIM_WORDS = tl.constexpr(16)
"""int32 of an entry: first split, splits claimed, what becomes of their fold (`ENDS`, `GOES_ON`, `IS_PARTIAL`), the
run's place in the line of all units' runs; the unit's first row, rows, request and last position; the pages of the
first split's four key blocks. Ahead of the entries: how many claims there are, and whether pairs are cut. Slots of
partials stand in the order of that line, head after head."""
ENDS = tl.constexpr(0)
GOES_ON = tl.constexpr(1)
IS_PARTIAL = tl.constexpr(2)
SPLITS_AT_ONCE = tl.constexpr(64)
RUNS_AT_ONCE = tl.constexpr(16)
"""Fewer than splits, for each one's place among all claims takes divisions."""
LAST_EPOCH = tl.constexpr(1 << 30)


@triton.jit
def runs_of(splits, run):
    """How many runs of `run` splits a unit's splits are."""
    return (splits + run - 1) // run


@triton.jit
def share_out(length, longest, pairs, programs, capacity, MOST: tl.constexpr, RUNS: tl.constexpr):
    """(whether pairs are cut, splits of a run) for `pairs` pairs that have `length` splits in all and at most `longest`
    each. There are `capacity` slots for partials, one for a run. A run has at most MOST splits where there is room
    for that, and fewer where a program had less than RUNS runs to do. The host foresees whether pairs are cut
    (`attention.claims_cut`)."""
    room = capacity - pairs
    fits = length <= capacity
    chained = (length >= programs.to(tl.int64) * longest) & (room > 0)
    fair = tl.minimum(tl.maximum(length // (programs * RUNS), 1), MOST)
    least = (length + room - 1) // tl.maximum(room, 1)
    whole = whole_pairs_pay(length, longest, pairs, programs, length) | ((not chained) & (not fits))
    cut = (not whole) & (not chained)
    run = tl.minimum(tl.maximum(fair, least), longest).to(tl.int32)
    return cut, tl.where(whole, longest, tl.where(cut, 1, run))


@triton.jit
def write_entries(
    table, entry, known, number, run, splits, cut, line, first, count, request, last, page_table, table_width,
    PAGE: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Write the entries [...] of a unit's runs `number`; `line` is the first one's place in the line."""
    place = table + (1 + entry) * CLAIM_WORDS
    split = number * run
    tl.store(place, split, mask=known)
    tl.store(place + 1, tl.minimum(splits - split, run), mask=known)
    follows = tl.where(split + run < splits, GOES_ON, ENDS)
    tl.store(place + 2, tl.where(cut & (splits > 1), IS_PARTIAL, follows), mask=known)
    tl.store(place + 3, line + number, mask=known)
    tl.store(place + 4, first, mask=known)
    tl.store(place + 5, count, mask=known)
    tl.store(place + 6, request, mask=known)
    tl.store(place + 7, last, mask=known)
    for block in tl.static_range(SPLIT // KEYS):
        key = tl.minimum(split * SPLIT + block * KEYS, last)
        pages = page_table + request.to(tl.int64) * table_width
        tl.store(place + 8 + block, tl.load(pages + key // PAGE, mask=known, other=0), mask=known)


@triton.jit
def claimed_before(number, mine, unit, found, other_splits, run):
    """How many runs [runs, units] of other units are claimed before the runs `number` of the unit `found`, which has
    `mine` splits: run k of n stands at (2k + 1) / 2n of all claims; of those that stand at one place, the longer
    unit's comes first."""
    own = runs_of(mine, run)
    others = runs_of(other_splits, run)[None, :]
    place = (2 * number + 1)[:, None] * others
    ahead = (place + own - 1) // (2 * own)
    first = (other_splits > mine) | ((other_splits == mine) & (unit < found))
    level = (place % (2 * own) == own) & first[None, :] & (others > 0)
    return ahead + level.to(tl.int32)


@triton.jit
def split_before(split, splits, unit, found):
    """As `claimed_before`, of pairs that are cut: all first splits, then all second ones."""
    ahead = tl.minimum(splits[None, :], split[:, None])
    behind = (unit < found)[None, :] & (splits[None, :] > split[:, None])
    return ahead + behind.to(tl.int32)


@triton.jit
def plan_claims(
    positions,
    unit_first,
    unit_count,
    unit_request,
    split_start,
    table,
    words,
    state,
    page_table,
    units,
    capacity,
    size,
    table_width,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    MOST: tl.constexpr,
    RUNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (programs,). Writes split_start int32 [units + 1], the splits before each unit, and the table int32
    [1 + entries, CLAIM_WORDS]: what `CLAIM_WORDS` says. Claim k is entry k div KV_HEADS, of the key-value head
    k mod KV_HEADS. `words` int64 [size] are all words of partials of `capacity` slots, and `state` as in the kernel
    that claims. MOST and RUNS as in `share_out`."""
    wait_only(DEPENDENT)
    program, programs = tl.program_id(0), tl.num_programs(0)
    total, longest, filled = count_splits(positions, unit_first, unit_count, split_start, units, SPLIT)
    cut, run = share_out(
        total.to(tl.int64) * KV_HEADS, longest, filled * KV_HEADS, programs, capacity, MOST, RUNS
    )
    run = tl.maximum(run, 1)
    if program == 0:
        tl.store(split_start + units, total)
        runs = tl.zeros((), tl.int32)
        for block in range(0, units, UNITS_AT_ONCE):
            unit = block + tl.arange(0, UNITS_AT_ONCE)
            splits = unit_splits(positions, unit_first, unit_count, unit, unit < units, SPLIT)
            runs += tl.sum(runs_of(splits, run), 0)
        tl.store(table, runs * KV_HEADS)
        tl.store(table + 1, cut.to(tl.int32))
        epoch = tl.load(state + 1)
        if epoch >= LAST_EPOCH:
            # Before the epochs begin anew, no word may look like one of theirs.
            for begin in range(0, size, 1024):
                place = begin + tl.arange(0, 1024)
                tl.store(words + place, tl.zeros((1024,), tl.int64), mask=place < size)
            tl.store(state + 1, 0)
    for found in range(program, units, programs):
        count = tl.load(unit_count + found)
        if count > 0:
            first, request = tl.load(unit_first + found), tl.load(unit_request + found)
            last = tl.load(positions + first + count - 1).to(tl.int32)
            mine = last // SPLIT + 1
            line = tl.zeros((), tl.int32)
            for block in range(0, units, UNITS_AT_ONCE):
                unit = block + tl.arange(0, UNITS_AT_ONCE)
                splits = unit_splits(positions, unit_first, unit_count, unit, unit < found, SPLIT)
                line += tl.sum(runs_of(splits, run), 0)
            if cut:
                for begin in range(0, mine, SPLITS_AT_ONCE):
                    number = begin + tl.arange(0, SPLITS_AT_ONCE)
                    entry = tl.zeros((SPLITS_AT_ONCE,), tl.int32)
                    for block in range(0, units, UNITS_AT_ONCE):
                        unit = block + tl.arange(0, UNITS_AT_ONCE)
                        splits = unit_splits(positions, unit_first, unit_count, unit, unit < units, SPLIT)
                        entry += tl.sum(split_before(number, splits, unit, found), 1)
                    write_entries(
                        table, entry, number < mine, number, run, mine, cut, line, first, count, request, last,
                        page_table, table_width, PAGE, KEYS, SPLIT,
                    )  # fmt: skip
            else:
                for begin in range(0, runs_of(mine, run), RUNS_AT_ONCE):
                    number = begin + tl.arange(0, RUNS_AT_ONCE)
                    entry = tl.zeros((RUNS_AT_ONCE,), tl.int32)
                    for block in range(0, units, UNITS_AT_ONCE):
                        unit = block + tl.arange(0, UNITS_AT_ONCE)
                        splits = unit_splits(positions, unit_first, unit_count, unit, unit < units, SPLIT)
                        entry += tl.sum(claimed_before(number, mine, unit, found, splits, run), 1)
                    write_entries(
                        table, entry, number < runs_of(mine, run), number, run, mine, cut, line, first, count, request,
                        last, page_table, table_width, PAGE, KEYS, SPLIT,
                    )  # fmt: skip
    publish(DEPENDENT)
