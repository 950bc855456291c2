"""Attention of whole tiles: one program walks every split of a tile of query rows (prefill)."""

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
from samebits.numerics.gpu.dependent import wait_ahead


@triton.jit
def read_block(
    storage,
    row,
    key,
    last,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    ZEROED: tl.constexpr,
    DESCRIBED: tl.constexpr,
):
    """Keys or values of one block, by addresses, or by a tensor descriptor of the storage as [rows, D]."""
    if DESCRIBED:
        block = storage.load([row.to(tl.int32), 0])
        if ZEROED:
            block = tl.where((key + tl.arange(0, KEYS))[:, None] <= last, block, 0.0)
        return block
    else:
        return load_block(storage, row, key, last, D, WIDTH, KEYS, ZEROED)


@triton.jit
def walk(
    begin, end, top, total, acc, split_top, lanes, split_acc, q, keys, values, page_table, request, table_width,
    kv_head, last, position, exists, factor, KV_HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    PAGE: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr, MASKED: tl.constexpr, DESCRIBED: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The key blocks that begin at the absolute keys begin .. end - 1; without MASKED, every row sees all of them.

    A split is folded when the next one begins, after that one's first scores: there the split's accumulator has
    been waited for anyway, and folding the empty state before the first split changes nothing."""
    for key in tl.range(begin, end, KEYS, num_stages=STAGES):
        place = block_row(page_table, request, table_width, kv_head, key, KV_HEADS, PAGE)
        k = read_block(keys, place, key, last, D, WIDTH, KEYS, False, DESCRIBED)
        v = read_block(values, place, key, last, D, WIDTH, KEYS, MASKED, DESCRIBED)
        scores = score(q, k)
        if key % SPLIT == 0:
            top, total, acc = fold(top, total, acc, split_top, fold_lanes(lanes), split_acc, factor)
            split_top, lanes, split_acc = empty_split(top.shape[0], WIDTH)
        visible = exists[:, None]
        if MASKED:
            visible = (key + tl.arange(0, KEYS))[None, :] <= position[:, None]
        split_top, lanes, split_acc = attend(
            scores, v, split_top, lanes, split_acc, visible, factor, MASKED, KEYS
        )
    return top, total, acc, split_top, lanes, split_acc


@triton.jit
def attention_tiles(
    queries,
    keys,
    values,
    output,
    positions,
    tile_first,
    tile_count,
    tile_request,
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
    DESCRIBED: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (tiles * KV_HEADS,). Tile t is the batch rows tile_first[t] .. + tile_count[t] - 1, at most
    ROWS div group of them, of the request tile_request[t]."""
    wait_ahead(DEPENDENT)
    tile, kv_head = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
    group: tl.constexpr = QUERY_HEADS // KV_HEADS
    first, count = tl.load(tile_first + tile), tl.load(tile_count + tile)
    request = tl.load(tile_request + tile)
    if count > 0:
        rows, heads, position, exists = tile_rows(positions, first, count, kv_head, group, ROWS)
        lowest = tl.load(positions + first).to(tl.int32)
        last = tl.load(positions + first + count - 1).to(tl.int32)
        columns = tl.arange(0, WIDTH)
        wanted = exists[:, None] & (columns < D)[None, :]
        q = tl.load(row_places(queries, rows, heads, columns, QUERY_HEADS, D), mask=wanted, other=0.0)
        top, total, acc = empty_partial(ROWS, WIDTH)
        split_top, lanes, split_acc = empty_split(ROWS, WIDTH)
        seen_by_all = (lowest + 1) // KEYS * KEYS
        top, total, acc, split_top, lanes, split_acc = walk(
            0, seen_by_all, top, total, acc, split_top, lanes, split_acc, q, keys, values, page_table, request,
            table_width, kv_head, last, position, exists, factor, KV_HEADS, D, WIDTH, PAGE, KEYS, SPLIT, False,
            DESCRIBED, STAGES,
        )  # fmt: skip
        top, total, acc, split_top, lanes, split_acc = walk(
            seen_by_all, last + 1, top, total, acc, split_top, lanes, split_acc, q, keys, values, page_table, request,
            table_width, kv_head, last, position, exists, factor, KV_HEADS, D, WIDTH, PAGE, KEYS, SPLIT, True,
            DESCRIBED, STAGES,
        )  # fmt: skip
        top, total, acc = fold(top, total, acc, split_top, fold_lanes(lanes), split_acc, factor)
        result = finish(total, acc).to(output.dtype.element_ty)
        tl.store(row_places(output, rows, heads, columns, QUERY_HEADS, D), result, mask=wanted)
