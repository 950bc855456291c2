"""Planted wrong attention kernels: the reference, with one mistake each."""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl

from samebits.numerics.gpu import attention
from samebits.numerics.gpu.arithmetic import fold_halves
from samebits.numerics.gpu.attention_core import (
    HIDDEN,
    SUM_LANES,
    block_row,
    block_sums,
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
from samebits.numerics.gpu.attention_operator import AttentionProblem, context_of
from samebits.numerics.gpu.configuration import Launch, start
from samebits.numerics.gpu.prover import Candidate, Tensors

RIGHT = 0
MUTANTS = {
    "key blocks of a split in descending order": 1,
    "splits folded in descending order": 2,
    "row sum in one lane": 3,
    "row sum of rounded weights": 4,
    "product and difference of the exponent rounded apart": 5,
    "queries scaled first": 6,
    "masked values not zeroed": 7,
    "no splits": 8,
    "half key blocks": 9,
    "one key too many": 10,
}
ONLY_IN_HALF = (4,)
"""Mutants that are none in float32."""


@triton.jit
def mutant_attend(scores, v, top, lanes, acc, visible, factor, MUTANT: tl.constexpr, KEYS: tl.constexpr):
    scores = tl.where(visible, scores, HIDDEN)
    new_top = tl.maximum(top, tl.max(scores, 1))
    if MUTANT == 5:
        weights = tl.exp2(scores * factor - (new_top * factor)[:, None])
    else:
        weights = tl.exp2(tl.fma(scores, factor, (-(new_top * factor))[:, None]))
    weights = tl.where(visible, weights, 0.0)
    shrink = tl.exp2((top - new_top) * factor)
    if MUTANT == 3:
        whole = fold_halves(weights, KEYS)
        first = (tl.arange(0, SUM_LANES) == 0)[None, :]
        lanes = tl.fma(lanes, shrink[:, None], tl.where(first, whole[:, None], 0.0))
    elif MUTANT == 4:
        rounded = weights.to(v.dtype).to(tl.float32)
        lanes = tl.fma(lanes, shrink[:, None], block_sums(rounded, KEYS, SUM_LANES))
    else:
        lanes = tl.fma(lanes, shrink[:, None], block_sums(weights, KEYS, SUM_LANES))
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_top, lanes, acc


@triton.jit
def mutant_attention(
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
    MUTANT: tl.constexpr,
):
    row, kv_head = tl.program_id(0), tl.program_id(1)
    group: tl.constexpr = QUERY_HEADS // KV_HEADS
    request = tl.load(row_request + row)
    rows, heads, position, exists = tile_rows(positions, row, 1, kv_head, group, ROWS)
    last = tl.load(positions + row).to(tl.int32)
    columns = tl.arange(0, WIDTH)
    wanted = exists[:, None] & (columns < D)[None, :]
    q = tl.load(row_places(queries, rows, heads, columns, QUERY_HEADS, D), mask=wanted, other=0.0)
    if MUTANT == 6:
        q = (q * factor).to(q.dtype)
        factor = factor * 0.0 + 1.0
    top, total, acc = empty_partial(ROWS, WIDTH)
    splits = last // SPLIT + 1
    for number in range(0, splits):
        split = (splits - 1 - number) * SPLIT if MUTANT == 2 else number * SPLIT
        split_top, lanes, split_acc = empty_split(ROWS, WIDTH)
        blocks = (tl.minimum(SPLIT, last + 1 - split) + KEYS - 1) // KEYS
        for block in range(0, blocks):
            key = split + (blocks - 1 - block if MUTANT == 1 else block) * KEYS
            place = block_row(page_table, request, table_width, kv_head, key, KV_HEADS, PAGE)
            k = load_block(keys, place, key, last, D, WIDTH, KEYS, True)
            v = load_block(values, place, key, last, D, WIDTH, KEYS, MUTANT != 7)
            limit = position[:, None] + (1 if MUTANT == 10 else 0)
            visible = (key + tl.arange(0, KEYS))[None, :] <= limit
            split_top, lanes, split_acc = mutant_attend(
                score(q, k), v, split_top, lanes, split_acc, visible, factor, MUTANT, KEYS
            )
        top, total, acc = fold(top, total, acc, split_top, fold_lanes(lanes), split_acc, factor)
    result = finish(total, acc).to(output.dtype.element_ty)
    tl.store(row_places(output, rows, heads, columns, QUERY_HEADS, D), result, mask=wanted)


def mutant_candidate(problem: AttentionProblem, mutant: int) -> Candidate:
    """One planted mistake; RIGHT has none."""
    shape = problem.shape
    if mutant == 8:
        shape = replace(shape, split_tokens=64 * shape.split_tokens)
    if mutant == 9:
        shape = replace(shape, key_block_tokens=shape.key_block_tokens // 2)

    def run(inputs: Tensors, outputs: Tensors) -> None:
        context = context_of(inputs)
        start(
            mutant_attention,
            (inputs[0].shape[0], shape.heads.kv_heads),
            inputs[0],
            context.keys,
            context.values,
            outputs[0],
            context.positions,
            inputs[5],
            context.page_table,
            context.page_table.stride(0),
            attention.softmax_factor(problem.scale),
            ROWS=shape.rows_for(1),
            MUTANT=mutant,
            launch=Launch(warps=4, stages=1),
            **shape.constants(),
        )

    return Candidate(f"mutant {mutant}", str(mutant), run)
