"""The attention clause, piece by piece: what every attention kernel does with one key block and one split.

A tile holds rows (query token, query head) of one key-value head: row r is token r div G, head r mod G. All
arithmetic of the clause stands here once, so that kernels differ in what they visit, never in what they compute.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu.arithmetic import fold_halves

HIDDEN = tl.constexpr(-1.0e30)
"""The score of a key that a row does not see, and the maximum of a row that has seen none: finite, so that
differences of two of them are 0. Its weight is set to 0 by name."""
SUM_LANES = tl.constexpr(CONTRACT.device_sum_lanes)
"""Lanes of the row sum: key j belongs to lane j mod SUM_LANES."""


@triton.jit
def block_sums(weights, KEYS: tl.constexpr, LANES: tl.constexpr):
    """Sum a key block's weights [ROWS, KEYS] by halving, down to LANES columns."""
    if KEYS == LANES:
        return weights
    else:
        rows: tl.constexpr = weights.shape[0]
        return block_sums(tl.sum(tl.reshape(weights, (rows, 2, KEYS // 2)), axis=1), KEYS // 2, LANES)


@triton.jit
def score(q, k):
    """Scores [ROWS, KEYS] of a key block: q [ROWS, D], k [KEYS, D]."""
    return tl.dot(q, tl.trans(k), input_precision="ieee")


@triton.jit
def attend(scores, v, top, lanes, acc, visible, factor, MASKED: tl.constexpr, KEYS: tl.constexpr):
    """Add one key block to a split: scores and visible [ROWS, KEYS], v [KEYS, D] -> the split's new state."""
    if MASKED:
        scores = tl.where(visible, scores, HIDDEN)
    new_top = tl.maximum(top, tl.max(scores, 1))
    shift = -(new_top * factor)
    weights = tl.exp2(tl.fma(scores, factor, shift[:, None]))
    if MASKED:
        weights = tl.where(visible, weights, 0.0)
    shrink = tl.exp2((top - new_top) * factor)
    lanes = tl.fma(lanes, shrink[:, None], block_sums(weights, KEYS, SUM_LANES))
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_top, lanes, acc


@triton.jit
def fold(top, total, acc, split_top, split_total, split_acc, factor):
    """Fold one split's partial [ROWS], [ROWS], [ROWS, D] into those of the splits before it."""
    new_top = tl.maximum(top, split_top)
    keep = tl.exp2((top - new_top) * factor)
    take = tl.exp2((split_top - new_top) * factor)
    total = tl.fma(total, keep, split_total * take)
    acc = tl.fma(acc, keep[:, None], split_acc * take[:, None])
    return new_top, total, acc


@triton.jit
def fold_lanes(lanes):
    """The row sum of a split: its lanes folded by halving."""
    return fold_halves(lanes, SUM_LANES)


@triton.jit
def finish(total, acc):
    """The output of finished rows: A / L, and -0 made +0. float32, `acc` with an axis more than `total`.

    The quotient is made of an estimate of 1 / L and two corrections, which is IEEE-754 division where nothing is
    subnormal: L lies between 1 and the number of keys. A division would be a call, and a kernel with calls waits
    after every tensor-core product.
    """
    estimate = 1.0 / total
    inverse = tl.fma(estimate, tl.fma(-total, estimate, 1.0), estimate)
    quotient = acc * tl.expand_dims(inverse, -1)
    rest = tl.fma(-tl.expand_dims(total, -1), quotient, acc)
    return tl.fma(rest, tl.expand_dims(inverse, -1), quotient) + 0.0


@triton.jit
def empty_split(ROWS: tl.constexpr, D: tl.constexpr):
    """(maximum, lanes, accumulator) before the first key of a split."""
    return (
        tl.full((ROWS,), HIDDEN, tl.float32),
        tl.zeros((ROWS, SUM_LANES), tl.float32),
        tl.zeros((ROWS, D), tl.float32),
    )


@triton.jit
def empty_partial(ROWS: tl.constexpr, D: tl.constexpr):
    """(maximum, sum, accumulator) before the first split."""
    return (
        tl.full((ROWS,), HIDDEN, tl.float32),
        tl.zeros((ROWS,), tl.float32),
        tl.zeros((ROWS, D), tl.float32),
    )


@triton.jit
def block_row(page_table, request, table_width, kv_head, key, KV_HEADS: tl.constexpr, PAGE: tl.constexpr):
    """Where the key block that begins at absolute key `key` lies in storage [pages, KV_HEADS, PAGE, D]: the
    row number, int64, of its first key in the storage seen as [rows, D]."""
    page = tl.load(page_table + request.to(tl.int64) * table_width + key // PAGE).to(tl.int64)
    return (page * KV_HEADS + kv_head) * PAGE + key % PAGE


@triton.jit
def load_block(
    storage, row, key, last, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, ZEROED: tl.constexpr
):
    """Keys or values [KEYS, WIDTH] of one block; with ZEROED, those after the key `last` are read as zero."""
    keys = tl.arange(0, KEYS)
    columns = tl.arange(0, WIDTH)
    places = storage + row * D + keys[:, None] * D + columns[None, :]
    if ZEROED:
        wanted = (key + keys)[:, None] <= last
        if D != WIDTH:
            wanted = wanted & (columns < D)[None, :]
        return tl.load(places, mask=wanted, other=0.0)
    elif D != WIDTH:
        return tl.load(places, mask=(columns < D)[None, :] & (keys >= 0)[:, None], other=0.0)
    else:
        return tl.load(places)


@triton.jit
def tile_rows(positions, first, count, kv_head, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """(batch row, query head, absolute position, whether it exists) of each row of a tile."""
    rows = tl.arange(0, ROWS)
    token = rows // GROUP
    exists = token < count
    position = tl.load(positions + first + token, mask=exists, other=-1).to(tl.int32)
    return first + token, kv_head * GROUP + rows % GROUP, position, exists


@triton.jit
def row_places(base, row, head, columns, HEADS: tl.constexpr, D: tl.constexpr):
    """Addresses of [ROWS, WIDTH] elements of a tensor [rows, HEADS, D]."""
    return base + ((row.to(tl.int64) * HEADS + head) * D)[:, None] + columns[None, :]
