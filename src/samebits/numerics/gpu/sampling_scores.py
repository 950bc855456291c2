"""Kernels of the sampling clause that draw: noise, scores, the choice.

Rough scores, by the device's own logarithm, name the few ids that may win; only these get the clause's noise. The
rough noise is off by less than ROUGHNESS for every word there is, so the winner is always among them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.arithmetic import (
    INFINITY,
    bits_float,
    bits_of_order,
    float_bits,
    order_of_bits,
)
from samebits.numerics.gpu.dependent import wait_ahead
from samebits.numerics.gpu.philox import (
    ROUGHNESS,
    noise_of_words,
    rough_noise_of_words,
    words_of_ids,
    words_of_range,
)
from samebits.numerics.gpu.sampling_rows import (
    EXCLUDED,
    FILTERED,
    LARGEST_KEY,
    NON_FINITE,
    NOTHING_LEFT,
    best_key,
    load_orders,
    load_survivors,
    smallest_key,
)

NOISE_SPAN = tl.constexpr(25.9)
"""Noise lies between -2.82 and 22.88, so an id this far below the best one cannot win."""
LIFT = tl.constexpr(2.0**24)
"""Gap and temperature are both multiplied by it, which leaves their quotient as it is: so the inverse of the smallest
temperature, too, is finite, and the best id's distance 0."""
WINNING_MARGIN = tl.constexpr(4 * ROUGHNESS.value)
"""Twice the error of a rough score, and room for the rounding of distances and sums."""


@triton.jit
def load_distances(
    logits, orders, allowed, kinds, chunk_keys, temperature, min_p, borders, ties, tie_counts, row, chunk, chunks,
    vocabulary, words, WITH_FILTERS: tl.constexpr, HAS_ALLOWED: tl.constexpr, CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr, ROUGH: tl.constexpr,
):  # fmt: skip
    """(ids, float32 distances, which survive) of a chunk of a row with a temperature. ROUGH: distances by a product
    with 1 / temperature, near the clause's."""
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    kind = tl.load(kinds + row)
    if WITH_FILTERS and (kind & FILTERED) != 0:
        bits, kept = load_survivors(
            orders, borders, ties, tie_counts, min_p, row, chunk, chunks, vocabulary, CHUNK, CHUNKS
        )
        distance = bits_float(bits)
    else:
        order, _ = load_orders(logits, orders, allowed, row, ids, kind, vocabulary, words, HAS_ALLOWED)
        best = (best_key(chunk_keys, row, chunks, CHUNKS) >> 32).to(tl.int32)
        kept = order != EXCLUDED
        gap = bits_float(bits_of_order(best)) - bits_float(bits_of_order(order))
        heat = tl.load(temperature + row)
        if ROUGH:
            distance = (gap * LIFT) * tl.div_rn(1.0, heat * LIFT)
        else:
            distance = tl.div_rn(gap, tl.zeros_like(gap) + heat)
    return ids, distance, kept


@triton.jit
def rough_scores(
    distance, kept, first, COUNT: tl.constexpr, seed, position, sample_index, NVIDIA: tl.constexpr
):
    """noise - distance of the ids first .. first + COUNT - 1, nearly; -inf for those that do not survive."""
    noise = rough_noise_of_words(words_of_range(first, COUNT, seed, position, sample_index), NVIDIA)
    return tl.where(kept, noise - distance, -INFINITY)


@triton.jit
def scores_of_chunks(
    logits,
    orders,
    allowed,
    kinds,
    chunk_keys,
    chunk_scores,
    temperature,
    min_p,
    borders,
    ties,
    tie_counts,
    seed,
    position,
    sample_index,
    vocabulary,
    words,
    WITH_FILTERS: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    NVIDIA: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (rows, chunks): the best rough score of each chunk."""
    wait_ahead(DEPENDENT)
    row, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    if tl.load(temperature + row) != 0.0:
        _, distance, kept = load_distances(
            logits, orders, allowed, kinds, chunk_keys, temperature, min_p, borders, ties, tie_counts, row, chunk,
            chunks, vocabulary, words, WITH_FILTERS, HAS_ALLOWED, CHUNK, CHUNKS, True,
        )  # fmt: skip
        best = tl.full((), -INFINITY, tl.float32)
        if tl.min(tl.where(kept, distance, INFINITY), 0) < NOISE_SPAN:
            scores = rough_scores(
                distance, kept, chunk * CHUNK, CHUNK, tl.load(seed + row), tl.load(position + row),
                tl.load(sample_index + row), NVIDIA,
            )  # fmt: skip
            best = tl.max(scores, 0)
        tl.store(chunk_scores + row * chunks + chunk, best)


@triton.jit
def best_of_contenders(ids, distance, rough, limit, seed, position, sample_index):
    """The key of the best noise - distance among the ids whose rough score reaches `limit`: the clause's noise is
    made for these alone, one by one."""
    may_win = rough >= limit
    left = tl.sum(may_win.to(tl.int32), 0)
    key = tl.full((), LARGEST_KEY, tl.int64)
    while left > 0:
        token_id = tl.min(tl.where(may_win, ids, 0x7FFFFFFF), 0)
        gap = tl.max(tl.where(ids == token_id, distance, 0.0), 0)
        one = token_id + tl.zeros((1,), tl.int32)
        score = noise_of_words(words_of_ids(one, seed, position, sample_index)) - gap
        key = tl.minimum(key, smallest_key(order_of_bits(float_bits(score)), one))
        may_win = may_win & (ids != token_id)
        left -= 1
    return key


@triton.jit
def choose_tokens(
    logits,
    orders,
    allowed,
    kinds,
    bad,
    chunk_keys,
    chunk_scores,
    temperature,
    min_p,
    borders,
    ties,
    tie_counts,
    seed,
    position,
    sample_index,
    tokens,
    faults,
    vocabulary,
    words,
    chunks,
    WITH_FILTERS: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    NVIDIA: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (rows,): the token, or -1 and the fault. Only chunks whose rough score comes near the best one are
    looked at again: in most rows, one."""
    wait_ahead(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    best = best_key(chunk_keys, row, chunks, CHUNKS)
    is_bad = tl.load(bad + row) != 0
    is_empty = (best >> 32) == EXCLUDED
    fault = tl.where(is_bad, NON_FINITE, tl.where(is_empty, NOTHING_LEFT, 0))
    key = best
    if (fault == 0) & (tl.load(temperature + row) != 0.0):
        key = tl.full((), LARGEST_KEY, tl.int64)
        place = tl.arange(0, CHUNKS)
        scores = tl.load(chunk_scores + row * chunks + place, mask=place < chunks, other=-INFINITY)
        limit = tl.max(scores, 0) - WINNING_MARGIN
        near = scores >= limit
        left = tl.sum(near.to(tl.int32), 0)
        while left > 0:
            chunk = tl.min(tl.where(near, place, CHUNKS), 0)
            ids, distance, kept = load_distances(
                logits, orders, allowed, kinds, chunk_keys, temperature, min_p, borders, ties, tie_counts, row,
                chunk, chunks, vocabulary, words, WITH_FILTERS, HAS_ALLOWED, CHUNK, CHUNKS, False,
            )  # fmt: skip
            mark, spot, index = tl.load(seed + row), tl.load(position + row), tl.load(sample_index + row)
            rough = rough_scores(distance, kept, chunk * CHUNK, CHUNK, mark, spot, index, NVIDIA)
            key = tl.minimum(key, best_of_contenders(ids, distance, rough, limit, mark, spot, index))
            near = near & (place != chunk)
            left -= 1
    tl.store(faults + row, fault.to(tl.uint8))
    tl.store(tokens + row, tl.where(fault != 0, -1, key & 0xFFFFFFFF))
