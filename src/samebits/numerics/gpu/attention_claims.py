"""Attention of few rows over long contexts where whoever is free claims the next split: the order of claims.

All first splits of all pairs of unit and key-value head are claimed first, then all second ones: so the partials of
every pair become complete in ascending order, and are folded while keys and values still stream.
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
"""int32 of an entry: first split, splits claimed, splits of the unit, the unit's first slot; the unit's first row,
rows, request and last position; the pages of the first split's four key blocks."""
SPLITS_AT_ONCE = tl.constexpr(64)
LAST_EPOCH = tl.constexpr(1 << 30)


@triton.jit
def write_entry(
    table, entry, known, split, taken, splits, slot, first, count, request, last, page_table, table_width,
    PAGE: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Write entries [...] of the table."""
    place = table + (1 + entry) * CLAIM_WORDS
    tl.store(place, split, mask=known)
    tl.store(place + 1, taken, mask=known)
    tl.store(place + 2, splits, mask=known)
    tl.store(place + 3, slot, mask=known)
    tl.store(place + 4, first, mask=known)
    tl.store(place + 5, count, mask=known)
    tl.store(place + 6, request, mask=known)
    tl.store(place + 7, last, mask=known)
    for block in tl.static_range(SPLIT // KEYS):
        key = tl.minimum(split * SPLIT + block * KEYS, last)
        pages = page_table + request.to(tl.int64) * table_width
        tl.store(place + 8 + block, tl.load(pages + key // PAGE, mask=known, other=0), mask=known)


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
    DEPENDENT: tl.constexpr,
):
    """Grid (programs,). Writes split_start int32 [units + 1], the splits before each unit, and the table int32
    [1 + entries, CLAIM_WORDS]: how many claims there are, and what each is. Claim k is entry k div KV_HEADS, of the
    key-value head k mod KV_HEADS. A pair is one claim of all its splits where whole pairs are nearly even, or where
    partials of `capacity` slots have no room. `words` int64 [size] are all words of partials, and `state` as in the
    kernel that claims."""
    wait_only(DEPENDENT)
    program, programs = tl.program_id(0), tl.num_programs(0)
    total, longest, filled = count_splits(positions, unit_first, unit_count, split_start, units, SPLIT)
    whole = whole_pairs_pay(total.to(tl.int64) * KV_HEADS, longest, filled * KV_HEADS, programs, capacity)
    if program == 0:
        tl.store(split_start + units, total)
        tl.store(table, tl.where(whole, filled, total) * KV_HEADS)
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
            slot = tl.zeros((), tl.int32)
            number = tl.zeros((), tl.int32)
            for block in range(0, units, UNITS_AT_ONCE):
                unit = block + tl.arange(0, UNITS_AT_ONCE)
                splits = unit_splits(positions, unit_first, unit_count, unit, unit < found, SPLIT)
                slot += tl.sum(splits, 0) * KV_HEADS
                number += tl.sum((splits > 0).to(tl.int32), 0)
            if whole:
                write_entry(
                    table, number, True, 0, mine, mine, slot, first, count, request, last, page_table, table_width,
                    PAGE, KEYS, SPLIT,
                )  # fmt: skip
            else:
                for begin in range(0, mine, SPLITS_AT_ONCE):
                    split = begin + tl.arange(0, SPLITS_AT_ONCE)
                    entry = tl.zeros((SPLITS_AT_ONCE,), tl.int32)
                    for block in range(0, units, UNITS_AT_ONCE):
                        unit = block + tl.arange(0, UNITS_AT_ONCE)
                        splits = unit_splits(positions, unit_first, unit_count, unit, unit < units, SPLIT)
                        ahead = tl.minimum(splits[None, :], split[:, None])
                        behind = (unit < found)[None, :] & (splits[None, :] > split[:, None])
                        entry += tl.sum(ahead + behind.to(tl.int32), 1)
                    write_entry(
                        table, entry, split < mine, split, 1, mine, slot, first, count, request, last, page_table,
                        table_width, PAGE, KEYS, SPLIT,
                    )  # fmt: skip
    publish(DEPENDENT)
