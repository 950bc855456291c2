"""Kernels of the sampling clause before the noise: penalties, bias, masks, the best id, distances, who survives.

A row is cut into chunks of CHUNK ids, each with a program of its own; integers (orders, keys, flags) go from one kernel
to the next, so no grouping can change a bit. A *key* is order * 2**32 + id: the smallest one is the first of the total
order. Rows that ask for nothing but temperature are read in place; *patched* rows get a row of orders of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.arithmetic import (
    INFINITE_BITS,
    MAGNITUDE_BITS,
    bits_float,
    bits_of_order,
    exp,
    float_bits,
    order_of_bits,
)
from samebits.numerics.gpu.dependent import wait_ahead

EXCLUDED = tl.constexpr(0x7FFFFFFF)
LAST_ALLOWED = tl.constexpr(0x7FFFFFFE)
PENALIZED = tl.constexpr(1)
PATCHED = tl.constexpr(2)
FILTERED = tl.constexpr(4)
LARGEST_KEY = tl.constexpr(0x7FFFFFFFFFFFFFFF)
NON_FINITE = tl.constexpr(1)
NOTHING_LEFT = tl.constexpr(2)
IN_PROMPT = tl.constexpr(1)
OUTPUT_STEP = tl.constexpr(2)


@triton.jit
def length_of(start, row):
    return tl.load(start + row + 1) - tl.load(start + row)


@triton.jit
def classify_rows(
    kinds,
    bad,
    top_k,
    top_p,
    min_p,
    presence,
    frequency,
    repetition,
    bias_start,
    forbidden_start,
    temperature,
    vocabulary,
    WANT_PROCESSED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (rows,): which paths a row asks for, as bits of `kinds` int32 [rows]; clears `bad` int32 [rows]."""
    wait_ahead(DEPENDENT)
    row = tl.program_id(0)
    penalized = (
        (tl.load(presence + row) != 0.0)
        | (tl.load(frequency + row) != 0.0)
        | (tl.load(repetition + row) != 1.0)
    )
    listed = (length_of(bias_start, row) > 0) | (length_of(forbidden_start, row) > 0)
    k = tl.load(top_k + row)
    filtered = ((k > 0) & (k < vocabulary)) | (tl.load(top_p + row) < 1.0) | (tl.load(min_p + row) > 0.0)
    filtered = (filtered | WANT_PROCESSED) & (tl.load(temperature + row) != 0.0)
    kind = tl.where(penalized, PENALIZED | PATCHED, 0) | tl.where(listed, PATCHED, 0)
    tl.store(kinds + row, kind | tl.where(filtered, FILTERED, 0))
    tl.store(bad + row, 0)


@triton.jit
def clear_counts(counts, kinds, vocabulary, CHUNK: tl.constexpr):
    """Grid (rows, chunks): zero the counts of penalized rows."""
    row, ids = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    if tl.load(kinds + row) & PENALIZED:
        tl.store(counts + row * vocabulary + ids, tl.zeros((CHUNK,), tl.int32), mask=ids < vocabulary)


@triton.jit
def add_list(counts, start, ids, row, part, parts, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    first, last = tl.load(start + row), tl.load(start + row + 1)
    for place in range(first + part * BLOCK, last, parts * BLOCK):
        entry = place + tl.arange(0, BLOCK)
        token_id = tl.load(ids + entry, mask=entry < last, other=0)
        if COUNT:
            tl.atomic_add(counts + token_id, 2, mask=entry < last, sem="relaxed")
        else:
            tl.atomic_or(counts + token_id, 1, mask=entry < last, sem="relaxed")


@triton.jit
def count_tokens(
    counts, kinds, prompt_start, prompt_ids, output_start, output_ids, vocabulary, BLOCK: tl.constexpr
):
    """Grid (rows, parts): bit 0 of an id's count says that it stands in the prompt, the rest how often it stands
    in the output. Integer sums: any order gives the same."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(kinds + row) & PENALIZED:
        mine = counts + row * vocabulary
        add_list(mine, prompt_start, prompt_ids, row, part, tl.num_programs(1), False, BLOCK)
        add_list(mine, output_start, output_ids, row, part, tl.num_programs(1), True, BLOCK)


@triton.jit
def penalized_values(value, count, repetition, frequency, presence):
    """float32 logits under their penalties."""
    factor = tl.full(value.shape, 1.0, tl.float32) * repetition
    repeated = tl.where(value > 0.0, tl.div_rn(value, factor), value * factor)
    times = count >> 1
    lowered = repeated - frequency * times.to(tl.float32)
    lowered = lowered - presence
    return tl.where(count == 0, value, tl.where(times > 0, lowered, repeated))


@triton.jit
def patch_orders(
    logits,
    orders,
    counts,
    kinds,
    bad,
    presence,
    frequency,
    repetition,
    vocabulary,
    CHUNK: tl.constexpr,
):
    """Grid (rows, chunks): orders of patched rows, after penalties."""
    row, ids = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    kind = tl.load(kinds + row)
    if kind & PATCHED:
        known = ids < vocabulary
        bits = tl.load(logits + row * vocabulary + ids, mask=known, other=0)
        worst = tl.max(bits & MAGNITUDE_BITS, 0)
        order = order_of_bits(bits)
        if kind & PENALIZED:
            count = tl.load(counts + row * vocabulary + ids, mask=known, other=0)
            value = penalized_values(
                bits_float(bits_of_order(order)),
                count,
                tl.load(repetition + row),
                tl.load(frequency + row),
                tl.load(presence + row),
            )
            changed = float_bits(value)
            worst = tl.maximum(worst, tl.max(changed & MAGNITUDE_BITS, 0))
            order = order_of_bits(changed)
        tl.store(orders + row * vocabulary + ids, order, mask=known)
        if worst >= INFINITE_BITS:
            tl.store(bad + row, 1)


@triton.jit
def patch_lists(
    logits,
    orders,
    kinds,
    bad,
    bias_start,
    bias_ids,
    bias_values,
    forbidden_start,
    forbidden_ids,
    vocabulary,
    BLOCK: tl.constexpr,
):
    """Grid (rows,): bias in list order, then the forbidden ids. An id that stands in the bias more than once is
    worked off by its first entry."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(kinds + row) & PATCHED:
        mine = orders + row * vocabulary
        first, last = tl.load(bias_start + row), tl.load(bias_start + row + 1)
        for block in range(first, last, BLOCK):
            entry = block + tl.arange(0, BLOCK)
            token_id = tl.load(bias_ids + entry, mask=entry < last, other=-1)
            owner = entry < last
            order = tl.load(mine + token_id, mask=owner, other=0)
            value = bits_float(bits_of_order(order))
            worst = tl.zeros((BLOCK,), tl.int32)
            for place in range(first, last):
                other_id, other_value = tl.load(bias_ids + place), tl.load(bias_values + place)
                same = token_id == other_id
                owner = owner & ~(same & (place < entry))
                value = tl.where(same, value + other_value, value)
                value = bits_float(bits_of_order(order_of_bits(float_bits(value))))
                worst = tl.where(same, tl.maximum(worst, float_bits(value) & MAGNITUDE_BITS), worst)
            if tl.max(tl.where(owner, worst, 0), 0) >= INFINITE_BITS:
                tl.store(bad + row, 1)
            tl.debug_barrier()
            tl.store(mine + token_id, order_of_bits(float_bits(value)), mask=owner)
        tl.debug_barrier()
        first, last = tl.load(forbidden_start + row), tl.load(forbidden_start + row + 1)
        for block in range(first, last, BLOCK):
            entry = block + tl.arange(0, BLOCK)
            token_id = tl.load(forbidden_ids + entry, mask=entry < last, other=0)
            tl.store(mine + token_id, tl.full((BLOCK,), EXCLUDED, tl.int32), mask=entry < last)


@triton.jit
def load_orders(logits, orders, allowed, row, ids, kind, vocabulary, words, HAS_ALLOWED: tl.constexpr):
    """The orders of a chunk: the row's own, or made from its logits; EXCLUDED beyond the vocabulary and where the
    row's bit in `allowed` int32 [rows, words] is 0. And the largest magnitude among the logits read (0 for a patched
    row, which has been checked)."""
    place = row * vocabulary + ids
    if kind & PATCHED:
        order = tl.load(orders + place, mask=ids < vocabulary, other=EXCLUDED)
        worst = 0
    else:
        bits = tl.load(logits + place, mask=ids < vocabulary, other=0)
        worst = tl.max(bits & MAGNITUDE_BITS, 0)
        order = tl.where(ids < vocabulary, order_of_bits(bits), EXCLUDED)
    if HAS_ALLOWED:
        word = tl.load(allowed + row * words + ids // 32, mask=ids < vocabulary, other=0)
        order = tl.where(((word >> (ids % 32)) & 1) == 0, EXCLUDED, order)
    return order, worst


@triton.jit
def smallest_key(order, ids):
    """The first id of the total order, as order * 2**32 + id."""
    best = tl.min(order, 0)
    first = tl.min(tl.where(order == best, ids, 0x7FFFFFFF), 0)
    return (best.to(tl.int64) << 32) | first.to(tl.int64)


@triton.jit
def best_key(chunk_keys, row, chunks, CHUNKS: tl.constexpr):
    """The smallest of a row's chunk keys."""
    chunk = tl.arange(0, CHUNKS)
    keys = tl.load(chunk_keys + row * chunks + chunk, mask=chunk < chunks, other=LARGEST_KEY)
    return tl.min(keys, 0)


@triton.jit
def best_of_chunks(
    logits, orders, allowed, kinds, bad, chunk_keys, vocabulary, words, HAS_ALLOWED: tl.constexpr,
    CHUNK: tl.constexpr, DEPENDENT: tl.constexpr):  # fmt: skip
    """Grid (rows, chunks): the best id of each chunk before temperature; unpatched rows are checked here."""
    wait_ahead(DEPENDENT)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    order, worst = load_orders(
        logits, orders, allowed, row, ids, tl.load(kinds + row), vocabulary, words, HAS_ALLOWED
    )
    if worst >= INFINITE_BITS:
        tl.store(bad + row, 1)
    tl.store(chunk_keys + row * tl.num_programs(1) + chunk, smallest_key(order, ids))


@triton.jit
def distances_of(order, best_order, temperature):
    """Bits of (largest logit - logit) / temperature, two roundings; EXCLUDED stays so."""
    largest = bits_float(bits_of_order(best_order))
    gap = largest - bits_float(bits_of_order(order))
    distance = tl.div_rn(gap, tl.zeros_like(gap) + temperature)
    return tl.where(order == EXCLUDED, EXCLUDED, float_bits(distance))


@triton.jit
def store_distances(
    logits, orders, allowed, kinds, chunk_keys, temperature, vocabulary, words, HAS_ALLOWED: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Grid (rows, chunks): of filtered rows, the distances, in place of the orders."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kind = tl.load(kinds + row)
    if kind & FILTERED:
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        order, _ = load_orders(logits, orders, allowed, row, ids, kind, vocabulary, words, HAS_ALLOWED)
        best = (best_key(chunk_keys, row, tl.num_programs(1), CHUNKS) >> 32).to(tl.int32)
        distance = distances_of(order, best, tl.load(temperature + row))
        tl.store(orders + row * vocabulary + ids, distance, mask=ids < vocabulary)


@triton.jit
def survivors(distance, border, ties, tie_counts, row, chunk, chunks, min_p, CHUNKS: tl.constexpr):
    """Which ids of a chunk the filters keep: those nearer than the border, and the first `ties` at it."""
    other = tl.arange(0, CHUNKS)
    before = tl.sum(tl.load(tie_counts + row * chunks + other, mask=other < chunk, other=0), 0)
    is_tie = distance == border
    rank = before + tl.cumsum(is_tie.to(tl.int32), 0) - is_tie.to(tl.int32)
    kept = (distance < border) | (is_tie & (rank.to(tl.int64) < ties))
    kept = kept & (distance != EXCLUDED)
    if min_p > 0.0:
        kept = kept & (exp(-bits_float(distance)) >= min_p)
    return kept


@triton.jit
def load_survivors(
    distances, borders, ties, tie_counts, min_p, row, chunk, chunks, vocabulary, CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """(distances as bits, which survive) of a chunk of a filtered row."""
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    distance = tl.load(distances + row * vocabulary + ids, mask=ids < vocabulary, other=EXCLUDED)
    kept = survivors(
        distance,
        tl.load(borders + row),
        tl.load(ties + row),
        tie_counts,
        row,
        chunk,
        chunks,
        tl.load(min_p + row),
        CHUNKS,
    )
    return distance, kept
