"""The attention clause as one simple kernel: the reference that every other attention kernel is proven against.

One program computes one query token of one key-value head; splits and key blocks are walked one by one, every
block is masked, nothing is shared or pipelined.
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
    score,
    tile_rows,
)


@triton.jit
def attention_reference(
    queries,
    keys,
    values,
    output,
    positions,
    row_request,
    page_table,
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
):
    """Grid (rows, KV_HEADS). queries and output act [rows, QUERY_HEADS, D]; row_request int32 [rows]."""
    row, kv_head = tl.program_id(0), tl.program_id(1)
    group: tl.constexpr = QUERY_HEADS // KV_HEADS
    request = tl.load(row_request + row)
    rows, heads, position, exists = tile_rows(positions, row, 1, kv_head, group, ROWS)
    last = tl.load(positions + row).to(tl.int32)
    columns = tl.arange(0, WIDTH)
    wanted = exists[:, None] & (columns < D)[None, :]
    q = tl.load(row_places(queries, rows, heads, columns, QUERY_HEADS, D), mask=wanted, other=0.0)
    top, total, acc = empty_partial(ROWS, WIDTH)
    for split in range(0, last + 1, SPLIT):
        split_top, lanes, split_acc = empty_split(ROWS, WIDTH)
        for key in range(split, tl.minimum(split + SPLIT, last + 1), KEYS):
            place = block_row(page_table, request, table_width, kv_head, key, KV_HEADS, PAGE)
            k = load_block(keys, place, key, last, D, WIDTH, KEYS, True)
            v = load_block(values, place, key, last, D, WIDTH, KEYS, True)
            visible = (key + tl.arange(0, KEYS))[None, :] <= position[:, None]
            split_top, lanes, split_acc = attend(
                score(q, k), v, split_top, lanes, split_acc, visible, factor, True, KEYS
            )
        top, total, acc = fold(top, total, acc, split_top, fold_lanes(lanes), split_acc, factor)
    result = finish(total, acc).to(output.dtype.element_ty)
    tl.store(row_places(output, rows, heads, columns, QUERY_HEADS, D), result, mask=wanted)
