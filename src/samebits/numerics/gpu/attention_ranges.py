"""Attention of few rows over long contexts: a fixed number of programs share all splits evenly (decode, verify).

A *unit* is a tile of query rows of one request; a *pair* is a unit and a key-value head. All splits of all pairs
stand in one line, pair after pair; program i of n walks the i-th n-th of it. A pair that lies in one program's
range is folded there; of a pair that is cut, every split's partial is written, and `fold_ranges` folds them. So the
cost follows the real lengths, which are read on the device, and one captured graph serves any.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.attention_core import (
    attend,
    block_row,
    empty_partial,
    empty_split,
    finish,
    fold,
    fold_lanes,
    load_block,
    row_places,
    tile_rows,
)

UNITS_AT_ONCE = tl.constexpr(256)


@triton.jit
def range_start(program, programs, total):
    """The first place in the line that belongs to a program. int64."""
    return program.to(tl.int64) * total // programs


@triton.jit
def unit_splits(positions, unit_first, unit_count, unit, known, SPLIT: tl.constexpr):
    """How many splits each unit's keys fill; 0 for units without rows."""
    count = tl.load(unit_count + unit, mask=known, other=0)
    first = tl.load(unit_first + unit, mask=known, other=0)
    exists = known & (count > 0)
    last = tl.load(positions + first + count - 1, mask=exists, other=0).to(tl.int32)
    return tl.where(exists, last // SPLIT + 1, 0)


@triton.jit(do_not_specialize=("units",))
def plan_ranges(
    positions,
    unit_first,
    unit_count,
    units,
    split_start,
    program_start,
    KV_HEADS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Grid (programs,). Writes split_start int32 [units + 1], the splits before each unit, and program_start
    int32 [programs, 2]: the unit in which a program begins, and its place among the unit's heads and splits."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    total = 0
    for block in range(0, units, UNITS_AT_ONCE):
        unit = block + tl.arange(0, UNITS_AT_ONCE)
        splits = unit_splits(positions, unit_first, unit_count, unit, unit < units, SPLIT)
        before = total + tl.cumsum(splits, 0) - splits
        if program == 0:
            tl.store(split_start + unit, before, mask=unit < units)
        total += tl.sum(splits, 0)
    if program == 0:
        tl.store(split_start + units, total)
    start = range_start(program, programs, total.to(tl.int64) * KV_HEADS)
    passed, unit_found, base = 0, 0, 0
    for block in range(0, units, UNITS_AT_ONCE):
        unit = block + tl.arange(0, UNITS_AT_ONCE)
        splits = unit_splits(positions, unit_first, unit_count, unit, unit < units, SPLIT)
        ends = passed + tl.cumsum(splits, 0)
        behind = (unit < units) & (ends.to(tl.int64) * KV_HEADS <= start)
        unit_found += tl.sum(behind.to(tl.int32), 0)
        base = tl.maximum(base, tl.max(tl.where(behind, ends, 0), 0))
        passed += tl.sum(splits, 0)
    tl.store(program_start + program * 2, unit_found)
    tl.store(program_start + program * 2 + 1, (start - base.to(tl.int64) * KV_HEADS).to(tl.int32))


@triton.jit
def store_partial(
    tops, totals, accumulators, slot, top, total, acc, exists, D: tl.constexpr, STRIDE: tl.constexpr
):
    """Write a partial to its slot; STRIDE rows a slot."""
    rows = tl.arange(0, top.shape[0])
    columns = tl.arange(0, acc.shape[1])
    place = slot * STRIDE + rows
    tl.store(tops + place, top, mask=exists)
    tl.store(totals + place, total, mask=exists)
    places = accumulators + (place * D)[:, None] + columns[None, :]
    tl.store(places, acc, mask=exists[:, None] & (columns < D)[None, :])


@triton.jit(do_not_specialize=("table_width", "units", "capacity"))
def attention_ranges(
    queries,
    keys,
    values,
    output,
    positions,
    unit_first,
    unit_count,
    unit_request,
    units,
    split_start,
    program_start,
    page_table,
    table_width,
    factor,
    tops,
    totals,
    accumulators,
    capacity,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    STRIDE: tl.constexpr,
    PINNED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (programs,). Partials lie in tops and totals float32 [capacity, STRIDE] and accumulators float32
    [capacity, STRIDE, D]; where the line is longer than `capacity`, no pair is cut. Without PINNED a range's splits
    make one partial, so that results follow the batch: for the profile that promises nothing."""
    group: tl.constexpr = QUERY_HEADS // KV_HEADS
    program, programs = tl.program_id(0), tl.num_programs(0)
    length = tl.load(split_start + units).to(tl.int64) * KV_HEADS
    place = range_start(program, programs, length)
    end = range_start(program + 1, programs, length)
    may_cut = length <= capacity
    unit = tl.load(program_start + program * 2)
    offset = tl.load(program_start + program * 2 + 1)
    columns = tl.arange(0, WIDTH)
    while place < end:
        splits = tl.load(split_start + unit + 1) - tl.load(split_start + unit)
        if splits == 0:
            unit += 1
        else:
            kv_head, begin = offset // splits, offset % splits
            rest = splits - begin
            taken = rest
            if may_cut:
                taken = tl.minimum(rest.to(tl.int64), end - place).to(tl.int32)
            if may_cut or begin == 0:
                first, count = tl.load(unit_first + unit), tl.load(unit_count + unit)
                request = tl.load(unit_request + unit)
                rows, heads, position, exists = tile_rows(positions, first, count, kv_head, group, ROWS)
                last = tl.load(positions + first + count - 1).to(tl.int32)
                wanted = exists[:, None] & (columns < D)[None, :]
                q = tl.load(row_places(queries, rows, heads, columns, QUERY_HEADS, D), mask=wanted, other=0.0)
                is_whole = taken == splits
                top, total, acc = empty_partial(ROWS, WIDTH)
                split_top, lanes, split_acc = empty_split(ROWS, WIDTH)
                stop = tl.minimum((begin + taken) * SPLIT, last + 1)
                for key in tl.range(begin * SPLIT, stop, KEYS, num_stages=STAGES):
                    where = block_row(page_table, request, table_width, kv_head, key, KV_HEADS, PAGE)
                    k = load_block(keys, where, key, last, D, WIDTH, KEYS, True)
                    v = load_block(values, where, key, last, D, WIDTH, KEYS, True)
                    visible = (key + tl.arange(0, KEYS))[None, :] <= position[:, None]
                    split_top, lanes, split_acc = attend(
                        q, k, v, split_top, lanes, split_acc, visible, factor, True, KEYS
                    )
                    if ((key + KEYS) % SPLIT == 0) | (key + KEYS >= stop):
                        split_total = fold_lanes(lanes)
                        if is_whole or not PINNED:
                            top, total, acc = fold(top, total, acc, split_top, split_total, split_acc, factor)
                        else:
                            slot = place + (key // SPLIT - begin)
                            store_partial(
                                tops,
                                totals,
                                accumulators,
                                slot,
                                split_top,
                                split_total,
                                split_acc,
                                exists,
                                D,
                                STRIDE,
                            )
                        split_top, lanes, split_acc = empty_split(ROWS, WIDTH)
                if is_whole:
                    result = finish(total, acc).to(output.dtype.element_ty)
                    tl.store(row_places(output, rows, heads, columns, QUERY_HEADS, D), result, mask=wanted)
                elif not PINNED:
                    store_partial(tops, totals, accumulators, place, top, total, acc, exists, D, STRIDE)
            place += taken
            offset += taken
            if offset == splits * KV_HEADS:
                unit += 1
                offset = 0


@triton.jit(do_not_specialize=("units", "capacity"))
def fold_ranges(
    output,
    unit_first,
    unit_count,
    units,
    split_start,
    program_start,
    factor,
    tops,
    totals,
    accumulators,
    capacity,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    PINNED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (programs, STRIDE): fold row program_id(1) of the pair that the start of a program's range cuts, if
    no earlier range's start cuts it too."""
    group: tl.constexpr = QUERY_HEADS // KV_HEADS
    program, programs, row = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    length = tl.load(split_start + units).to(tl.int64) * KV_HEADS
    start = range_start(program, programs, length)
    unit = tl.load(program_start + program * 2)
    offset = tl.load(program_start + program * 2 + 1)
    if (program > 0) & (length <= capacity) & (start < length):
        splits = tl.load(split_start + unit + 1) - tl.load(split_start + unit)
        kv_head, inside = offset // splits, offset % splits
        pair = start - inside
        count = tl.load(unit_count + unit)
        is_first = range_start(program - 1, programs, length) <= pair
        if (inside > 0) & is_first & (row < count * group):
            columns = tl.arange(0, WIDTH)
            top, total, acc = empty_partial(1, WIDTH)
            if PINNED:
                for split in tl.range(0, splits, num_stages=STAGES):
                    place = (pair + split) * STRIDE + row + tl.arange(0, 1)
                    split_top, split_total = tl.load(tops + place), tl.load(totals + place)
                    values = accumulators + (place * D)[:, None] + columns[None, :]
                    split_acc = tl.load(values, mask=(columns < D)[None, :], other=0.0)
                    top, total, acc = fold(top, total, acc, split_top, split_total, split_acc, factor)
            else:
                slot = pair
                following = program.to(tl.int64)
                while slot < pair + splits:
                    place = slot * STRIDE + row + tl.arange(0, 1)
                    split_top, split_total = tl.load(tops + place), tl.load(totals + place)
                    values = accumulators + (place * D)[:, None] + columns[None, :]
                    split_acc = tl.load(values, mask=(columns < D)[None, :], other=0.0)
                    top, total, acc = fold(top, total, acc, split_top, split_total, split_acc, factor)
                    while range_start(following, programs, length) <= slot:
                        following += 1
                    slot = range_start(following, programs, length)
            first = tl.load(unit_first + unit)
            rows = first + row // group + tl.zeros((1,), tl.int32)
            heads = kv_head * group + row % group + tl.zeros((1,), tl.int32)
            result = finish(total, acc).to(output.dtype.element_ty)
            places = row_places(output, rows, heads, columns, QUERY_HEADS, D)
            tl.store(places, result, mask=(columns < D)[None, :])
