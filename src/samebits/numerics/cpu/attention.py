"""The attention clause: absolute splits of 256 keys, key blocks of 64 inside them, partials folded ascending.

A tile is a run of query rows of one request times the query heads that share one key-value head; its
(row, head) pairs share every load of keys and values. What a pair computes does not depend on the others.
"""

from __future__ import annotations

import numpy as np

from samebits.numerics.contract import CONTRACT
from samebits.numerics.cpu.kernel import Kernel, inlined
from samebits.numerics.cpu.keyvalue import MAX_HEAD_DIM
from samebits.numerics.cpu.lanes import (
    float_from_bits,
    fma,
    keep_below,
    larger,
    largest_lane,
    load,
    load_float,
    load_int32,
    load_int64,
    splat,
    store,
    store_float,
    sum_lanes,
)
from samebits.numerics.cpu.math import exp32
from samebits.numerics.cpu.scratch import make_scratch
from samebits.numerics.cpu.tile import make_tile

SPLIT = CONTRACT.split_tokens
KEY_BLOCK = CONTRACT.key_block_tokens
MAX_PAIRS = 48
MINUS_INFINITY = np.float32(-np.inf)
ZERO = np.float32(0.0)
ONE = np.float32(1.0)

query_scratch = make_scratch(MAX_PAIRS * MAX_HEAD_DIM)
score_scratch = make_scratch(MAX_PAIRS * KEY_BLOCK)
sum_scratch = make_scratch(MAX_PAIRS * MAX_HEAD_DIM)
total_scratch = make_scratch(MAX_PAIRS * MAX_HEAD_DIM)
lane_scratch = make_scratch(MAX_PAIRS * 16)
maximum_scratch = make_scratch(MAX_PAIRS)
total_maximum_scratch = make_scratch(MAX_PAIRS)
total_sum_scratch = make_scratch(MAX_PAIRS)

tile_four_panels = make_tile("float32", 4, 1, 1)
tile_two_panels = make_tile("float32", 2, 2, 3)
tile_one_panel = make_tile("float32", 1, 1, 6)


@inlined
def product(rows, a, a_stride, b, panel_stride, row_stride, c, c_stride, panels, depth, accumulate):
    """c = (c or 0) + a b for up to six rows and any number of panels, each element one ascending chain."""
    panel = 0
    while panel < panels:
        left = panels - panel
        source = b + panel * panel_stride * 4
        target = c + panel * 64
        if rows == 1 and left >= 4:
            tile_four_panels(
                rows, a, a_stride, source, panel_stride, row_stride, target, c_stride, depth, accumulate
            )
            panel += 4
        elif 1 < rows < 4 and left >= 2:
            tile_two_panels(
                rows, a, a_stride, source, panel_stride, row_stride, target, c_stride, depth, accumulate
            )
            panel += 2
        else:
            tile_one_panel(
                rows, a, a_stride, source, panel_stride, row_stride, target, c_stride, depth, accumulate
            )
            panel += 1


@inlined
def exponentials(scores, visible, pair, maxima, lanes, sums, width):
    """Turn one pair's scores of a key block into exponentials, and rescale what it has summed so far."""
    row = scores + pair * KEY_BLOCK * 4
    first = keep_below(load(row, 0), visible, MINUS_INFINITY)
    second = keep_below(load(row, 16), visible - 16, MINUS_INFINITY)
    third = keep_below(load(row, 32), visible - 32, MINUS_INFINITY)
    fourth = keep_below(load(row, 48), visible - 48, MINUS_INFINITY)
    before = load_float(maxima, pair)
    maximum = larger(largest_lane(larger(larger(first, second), larger(third, fourth))), before)
    rescale = exp32(before - maximum)
    shift = splat(maximum)
    first = exp32(first - shift)
    second = exp32(second - shift)
    third = exp32(third - shift)
    fourth = exp32(fourth - shift)
    total = fma(load(lanes, pair * 16), splat(rescale), first)
    store(lanes, pair * 16, total + second + third + fourth)
    store(row, 0, first)
    store(row, 16, second)
    store(row, 32, third)
    store(row, 48, fourth)
    store_float(maxima, pair, maximum)
    factor = splat(rescale)
    for i in range(0, width, 16):
        store(sums, pair * width + i, load(sums, pair * width + i) * factor)


@inlined
def first_visible_row(positions, rows, key):
    """The first of `rows` ascending positions that sees the key."""
    row = 0
    while row < rows and load_int64(positions, row) < key:
        row += 1
    return row


@inlined
def walk_split(
    split, queries, positions, rows, group, width, pages, page_tokens, page_stride, keys, values,
    scores, sums, maxima, lanes,
):  # fmt: skip
    """One split for all pairs of a tile: unfolded maximum, sixteen-lane row sum and accumulator of each."""
    pairs = rows * group
    last = load_int64(positions, rows - 1)
    start = split * SPLIT
    begin = first_visible_row(positions, rows, start) * group
    for pair in range(begin, pairs):
        store_float(maxima, pair, MINUS_INFINITY)
        store(lanes, pair * 16, splat(ZERO))
        for i in range(0, width, 16):
            store(sums, pair * width + i, splat(ZERO))
    for key in range(start, min(start + SPLIT, last + 1), KEY_BLOCK):
        page = load_int32(pages, key // page_tokens)
        offset = key % page_tokens
        base = (page * page_stride + offset * width) * 4
        block_keys = keys + base
        block_values = values + base
        begin = first_visible_row(positions, rows, key) * group
        for pair in range(begin, pairs, 6):
            count = min(6, pairs - pair)
            # No key of the block is visible to a pair beyond the last pair's position.
            visible = min(load_int64(positions, (pair + count - 1) // group) - key + 1, KEY_BLOCK)
            product(
                count, queries + pair * width * 4, width, block_keys, 16 * width, 16,
                scores + pair * KEY_BLOCK * 4, KEY_BLOCK, (visible + 15) // 16, width, 0,
            )  # fmt: skip
            for one in range(pair, pair + count):
                seen = min(load_int64(positions, one // group) - key + 1, KEY_BLOCK)
                exponentials(scores, seen, one, maxima, lanes, sums, width)
            product(
                count, scores + pair * KEY_BLOCK * 4, KEY_BLOCK, block_values, 16, width,
                sums + pair * width * 4, width, width // 16, visible, 1,
            )  # fmt: skip


@inlined
def fold(maxima, totals, sums, place, maximum, total, partial, width):
    """Fold a split's (maximum, total, accumulator) into the running state at `place`."""
    before = load_float(maxima, place)
    joint = larger(maximum, before)
    keep = exp32(before - joint)
    take = exp32(maximum - joint)
    store_float(maxima, place, joint)
    store_float(totals, place, fma(load_float(totals, place), keep, total * take))
    keep_lanes = splat(keep)
    take_lanes = splat(take)
    row = sums + place * width * 4
    for i in range(0, width, 16):
        store(row, i, fma(load(row, i), keep_lanes, load(partial, i) * take_lanes))


@inlined
def start_fold(maxima, totals, sums, place, width):
    store_float(maxima, place, MINUS_INFINITY)
    store_float(totals, place, ZERO)
    for i in range(0, width, 16):
        store(sums, place * width + i, splat(ZERO))


@inlined
def finish_fold(totals, sums, place, target, width):
    """target = accumulator / total; adding +0 makes a negative zero positive."""
    divisor = splat(load_float(totals, place))
    zero = splat(ZERO)
    for i in range(0, width, 16):
        store(target, i, load(sums, place * width + i) / divisor + zero)


@inlined
def gather_queries(source, rows, group, query_heads, head, width, scale, target):
    """Queries of a tile times the scale, rounded once, pairs beside each other."""
    factor = splat(scale)
    for row in range(rows):
        for member in range(group):
            place = (row * group + member) * width
            start = (row * query_heads + head * group + member) * width
            for i in range(0, width, 16):
                store(target, place + i, load(source, start + i) * factor)


def attention_task(arguments, index):
    """A tile and key-value head through all its splits or, with a partials buffer, one split of it.

    Work items: (request, first row, rows, split or -1, place of the first partial), one for each task of a
    key-value head.
    """
    queries = load_int64(arguments, 0)
    output = load_int64(arguments, 1)
    keys = load_int64(arguments, 2)
    values = load_int64(arguments, 3)
    positions = load_int64(arguments, 4)
    page_table = load_int64(arguments, 5)
    table_stride = load_int64(arguments, 6)
    page_tokens = load_int64(arguments, 7)
    query_heads = load_int64(arguments, 8)
    kv_heads = load_int64(arguments, 9)
    width = load_int64(arguments, 10)
    scale = float_from_bits(load_int64(arguments, 11))
    work = load_int64(arguments, 12)
    partials = load_int64(arguments, 13)
    item = work + index // kv_heads * 40
    head = index % kv_heads
    request = load_int64(item, 0)
    first = load_int64(item, 1)
    rows = load_int64(item, 2)
    only = load_int64(item, 3)
    group = query_heads // kv_heads
    pairs = rows * group
    head_bytes = width * 4
    scaled = query_scratch()
    scores = score_scratch()
    sums = sum_scratch()
    lanes = lane_scratch()
    maxima = maximum_scratch()
    row_positions = positions + first * 8
    pages = page_table + request * table_stride * 4
    page_stride = kv_heads * page_tokens * width
    head_offset = head * page_tokens * head_bytes
    source = queries + first * query_heads * head_bytes
    gather_queries(source, rows, group, query_heads, head, width, scale, scaled)
    if only >= 0:
        walk_split(
            only, scaled, row_positions, rows, group, width, pages, page_tokens, page_stride,
            keys + head_offset, values + head_offset, scores, sums, maxima, lanes,
        )  # fmt: skip
        place = (load_int64(item, 4) * kv_heads + head * pairs) * (width + 16)
        for pair in range(first_visible_row(row_positions, rows, only * SPLIT) * group, pairs):
            target = partials + (place + pair * (width + 16)) * 4
            store_float(target, 0, load_float(maxima, pair))
            store_float(target, 1, sum_lanes(load(lanes, pair * 16)))
            for i in range(0, width, 16):
                store(target, 16 + i, load(sums, pair * width + i))
        return
    totals = total_scratch()
    total_maxima = total_maximum_scratch()
    total_sums = total_sum_scratch()
    for pair in range(pairs):
        start_fold(total_maxima, total_sums, totals, pair, width)
    for split in range(load_int64(row_positions, rows - 1) // SPLIT + 1):
        walk_split(
            split, scaled, row_positions, rows, group, width, pages, page_tokens, page_stride,
            keys + head_offset, values + head_offset, scores, sums, maxima, lanes,
        )  # fmt: skip
        for pair in range(first_visible_row(row_positions, rows, split * SPLIT) * group, pairs):
            total = sum_lanes(load(lanes, pair * 16))
            partial = sums + pair * head_bytes
            fold(total_maxima, total_sums, totals, pair, load_float(maxima, pair), total, partial, width)
    for pair in range(pairs):
        row = first + pair // group
        target = output + (row * query_heads + head * group + pair % group) * head_bytes
        finish_fold(total_sums, totals, pair, target, width)


def attention_fold_task(arguments, index):
    """Fold the partials of one tile and key-value head. Work items: (first row, rows, place, items apart)."""
    output = load_int64(arguments, 1)
    positions = load_int64(arguments, 4)
    query_heads = load_int64(arguments, 8)
    kv_heads = load_int64(arguments, 9)
    width = load_int64(arguments, 10)
    partials = load_int64(arguments, 13)
    folds = load_int64(arguments, 14)
    item = folds + index // kv_heads * 32
    head = index % kv_heads
    first = load_int64(item, 0)
    rows = load_int64(item, 1)
    group = query_heads // kv_heads
    pairs = rows * group
    maxima = total_maximum_scratch()
    totals = total_sum_scratch()
    sums = total_scratch()
    for pair in range(pairs):
        row = first + pair // group
        start_fold(maxima, totals, sums, pair, width)
        for split in range(load_int64(positions, row) // SPLIT + 1):
            place = (load_int64(item, 2) + split * pairs) * kv_heads + head * pairs + pair
            partial = partials + place * (width + 16) * 4
            fold(
                maxima,
                totals,
                sums,
                pair,
                load_float(partial, 0),
                load_float(partial, 1),
                partial + 64,
                width,
            )
        target = output + (row * query_heads + head * group + pair % group) * width * 4
        finish_fold(totals, sums, pair, target, width)


ATTENTION = Kernel(attention_task)
ATTENTION_FOLD = Kernel(attention_fold_task)
