"""How the attention of a batch is cut into tasks. Nothing here can change a bit: only who computes what, when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba.core import types

from samebits.numerics.contract import CONTRACT
from samebits.numerics.cpu.attention import MAX_PAIRS
from samebits.numerics.cpu.kernel import compiled
from samebits.numerics.cpu.lanes import load_int32, load_int64, store_int64

SPLIT = CONTRACT.split_tokens
ITEM_WORDS = 5
FOLD_WORDS = 4
SPLIT_WORTH = 4
COUNT_WORDS = 4


@compiled
def plan_items(query_start, positions, requests, group, tile_rows, shares, work, folds, counts):
    """Write work items and fold items; counts become (work items, folds, partial pairs, cost).

    A tile whose cost is more than one of `shares` equal shares is cut into its splits. Tiles of one request
    are taken last first, for they see most keys and should start early.
    """
    total = 0
    for request in range(requests):
        end = load_int32(query_start, request + 1)
        for first in range(load_int32(query_start, request), end, tile_rows):
            rows = min(tile_rows, end - first)
            total += rows * group * (load_int64(positions, first + rows - 1) + 1)
    items = 0
    fold_items = 0
    partial_pairs = 0
    for request in range(requests):
        start = load_int32(query_start, request)
        end = load_int32(query_start, request + 1)
        tiles = (end - start + tile_rows - 1) // tile_rows
        for tile in range(tiles - 1, -1, -1):
            first = start + tile * tile_rows
            rows = min(tile_rows, end - first)
            pairs = rows * group
            keys = load_int64(positions, first + rows - 1) + 1
            splits = (keys + SPLIT - 1) // SPLIT
            cut = splits >= SPLIT_WORTH and pairs * keys * shares > total
            for split in range(splits if cut else 1):
                item = work + items * ITEM_WORDS * 8
                store_int64(item, 0, request)
                store_int64(item, 1, first)
                store_int64(item, 2, rows)
                store_int64(item, 3, split if cut else -1)
                store_int64(item, 4, partial_pairs + split * pairs)
                items += 1
            if cut:
                item = folds + fold_items * FOLD_WORDS * 8
                store_int64(item, 0, first)
                store_int64(item, 1, rows)
                store_int64(item, 2, partial_pairs)
                fold_items += 1
                partial_pairs += splits * pairs
    store_int64(counts, 0, items)
    store_int64(counts, 1, fold_items)
    store_int64(counts, 2, partial_pairs)
    store_int64(counts, 3, total)


@dataclass(frozen=True)
class AttentionPlan:
    """Work items of one batch. `work` and `folds` must live as long as their addresses are used."""

    work: np.ndarray
    folds: np.ndarray
    items: int
    fold_items: int
    partial_pairs: int
    cost: int
    """Sum over (row, query head of one key-value head) of the keys seen, tiles rounded up"""


def plan_attention(
    query_start: int,
    positions: int,
    rows: int,
    requests: int,
    group: int,
    longest: int,
    shares: int,
) -> AttentionPlan:
    """Plan a batch of `rows` rows. `longest` bounds the number of keys of a request; addresses as int."""
    tile_rows = max(1, MAX_PAIRS // group)
    tiles = rows // tile_rows + requests
    most_splits = -(-longest // SPLIT)
    cut_tiles = min(tiles, max(1, shares))
    work = np.empty((tiles + cut_tiles * most_splits, ITEM_WORDS), np.int64)
    folds = np.empty((cut_tiles, FOLD_WORDS), np.int64)
    counts = np.empty(COUNT_WORDS, np.int64)
    plan_items(
        query_start,
        positions,
        requests,
        group,
        tile_rows,
        shares,
        work.ctypes.data,
        folds.ctypes.data,
        counts.ctypes.data,
    )
    items, fold_items, partial_pairs, cost = counts.tolist()
    return AttentionPlan(work, folds, items, fold_items, partial_pairs, cost)


def prepare_plan() -> None:
    """Compile or load the planner."""
    plan_items.compile((types.int64,) * 9)
