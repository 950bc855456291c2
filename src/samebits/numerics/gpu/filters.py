"""Top-k and top-p without a sort: the border distance is found digit by digit in sums of integer weights.

Integer sums have no order, so atomic additions give the same sum at every run. The kernels skip rows that ask for
nothing of the kind.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.arithmetic import bits_float, exp, log
from samebits.numerics.gpu.sampling_rows import EXCLUDED, FILTERED, LAST_ALLOWED, load_survivors

BINS = tl.constexpr(2048)
WEIGHT_SCALE = tl.constexpr(2.0**40)
WEIGHTLESS = tl.constexpr(0x41E00000)
"""Bits of the distance 28, from which a weight is 0."""
MANY = tl.constexpr(0x7FFFFFFFFFFFFFFF)
TOP_K, TOP_P = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def weights_of(distance):
    """floor(exp(-distance) * 2**40) int64 of distances as bits; 0 for excluded ids."""
    near = tl.where(distance > WEIGHTLESS, WEIGHTLESS, distance)
    weight = (exp(-bits_float(near)) * WEIGHT_SCALE).to(tl.int64)
    return tl.where(distance > WEIGHTLESS, tl.zeros_like(weight), weight)


@triton.jit
def is_asked(kinds, top_k, top_p, row, vocabulary, MODE: tl.constexpr):
    """Whether a row asks for this filter."""
    filtered = (tl.load(kinds + row) & FILTERED) != 0
    if MODE == TOP_K:
        k = tl.load(top_k + row)
        return filtered & (k > 0) & (k < vocabulary)
    else:
        return filtered & (tl.load(top_p + row) < 1.0)


@triton.jit
def reset_borders(borders, ties):
    """Grid (rows,): everything that is allowed survives."""
    tl.store(borders + tl.program_id(0), LAST_ALLOWED)
    tl.store(ties + tl.program_id(0), MANY)


@triton.jit
def add_weights(
    distances,
    kinds,
    top_k,
    top_p,
    borders,
    ties,
    prefixes,
    sums,
    vocabulary,
    LEVEL: tl.constexpr,
    MODE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid (rows, chunks): add weights to `sums` int64 [rows, BINS] by the distance's next digit. For top-p, what
    top-k drops has no weight."""
    shift: tl.constexpr = 20 if LEVEL == 0 else (10 if LEVEL == 1 else 0)
    bits: tl.constexpr = 11 if LEVEL == 0 else 10
    row = tl.program_id(0).to(tl.int64)
    if is_asked(kinds, top_k, top_p, row, vocabulary, MODE):
        ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
        distance = tl.load(distances + row * vocabulary + ids, mask=ids < vocabulary, other=EXCLUDED)
        chosen = distance != EXCLUDED
        if MODE == TOP_K:
            weight = tl.full((CHUNK,), 1, tl.int64)
        else:
            weight = weights_of(distance)
            border = tl.load(borders + row)
            chosen = chosen & (weight > 0) & (distance < border)
        if LEVEL > 0:
            chosen = chosen & ((distance >> (shift + bits)) == tl.load(prefixes + row))
        digit = (distance >> shift) & ((1 << bits) - 1)
        tl.atomic_add(sums + row * BINS + digit, weight, mask=chosen, sem="relaxed")
        if MODE == TOP_P and (tl.program_id(1) == 0) & (border < WEIGHTLESS):
            tied = weights_of(border) * tl.load(ties + row)
            here = tied > 0
            if LEVEL > 0:
                here = here & ((border >> (shift + bits)) == tl.load(prefixes + row))
            border_digit = (border >> shift) & ((1 << bits) - 1)
            tl.atomic_add(sums + row * BINS + border_digit, tied, mask=here, sem="relaxed")


@triton.jit
def goal_of(total, top_p):
    """ceil(top_p * total), the product in float64, at least 1."""
    product = top_p.to(tl.float64) * total.to(tl.float64)
    goal = product.to(tl.int64)
    goal += (goal.to(tl.float64) < product).to(tl.int64)
    return tl.maximum(goal, 1)


@triton.jit
def next_digit(
    kinds,
    top_k,
    top_p,
    borders,
    ties,
    prefixes,
    needs,
    sums,
    vocabulary,
    LEVEL: tl.constexpr,
    MODE: tl.constexpr,
):
    """Grid (rows,): the digit in whose bin the running sum reaches what is needed; clears the row's sums. The last
    level writes the border and how many of the ids at it are kept."""
    bits: tl.constexpr = 11 if LEVEL == 0 else 10
    row = tl.program_id(0).to(tl.int64)
    if is_asked(kinds, top_k, top_p, row, vocabulary, MODE):
        bins = tl.arange(0, BINS)
        weight = tl.load(sums + row * BINS + bins)
        running = tl.cumsum(weight, 0)
        tl.store(sums + row * BINS + bins, tl.zeros((BINS,), tl.int64))
        total = tl.sum(weight, 0)
        if LEVEL == 0:
            prefix = 0
            if MODE == TOP_K:
                need = tl.load(top_k + row).to(tl.int64)
            else:
                need = goal_of(total, tl.load(top_p + row))
        else:
            prefix = tl.load(prefixes + row)
            need = tl.load(needs + row)
        digit = tl.sum((running < need).to(tl.int32), 0)
        need -= tl.max(tl.where(running < need, running, 0), 0)
        prefix = (prefix << bits) | digit
        # Fewer ids than top-k asks for: nothing is dropped (the digit counts past the last bin).
        is_short = digit >= (1 << bits)
        if LEVEL > 0:
            is_short = is_short | (tl.load(borders + row) == EXCLUDED)
        tl.store(prefixes + row, prefix)
        tl.store(needs + row, need)
        if MODE == TOP_K:
            if LEVEL < 2:
                tl.store(borders + row, tl.where(is_short, EXCLUDED, LAST_ALLOWED))
            else:
                tl.store(borders + row, tl.where(is_short, LAST_ALLOWED, prefix))
                tl.store(ties + row, tl.where(is_short, MANY, need))
        elif LEVEL == 2:
            one = tl.maximum(weights_of(prefix), 1)
            tl.store(borders + row, prefix)
            tl.store(ties + row, (need + one - 1) // one)


@triton.jit
def count_ties(distances, kinds, borders, tie_counts, vocabulary, CHUNK: tl.constexpr):
    """Grid (rows, chunks): how many ids of a chunk lie at the row's border."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(kinds + row) & FILTERED:
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        distance = tl.load(distances + row * vocabulary + ids, mask=ids < vocabulary, other=EXCLUDED)
        ties = tl.sum((distance == tl.load(borders + row)).to(tl.int32), 0)
        tl.store(tie_counts + row * tl.num_programs(1) + chunk, ties)


@triton.jit
def sum_survivors(
    distances, kinds, borders, ties, tie_counts, min_p, chunk_sums, vocabulary, CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Grid (rows, chunks): the survivors' weights of each chunk, int64."""
    row, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    if tl.load(kinds + row) & FILTERED:
        distance, kept = load_survivors(
            distances, borders, ties, tie_counts, min_p, row, chunk, chunks, vocabulary, CHUNK, CHUNKS
        )
        weight = tl.where(kept, weights_of(distance), tl.zeros((CHUNK,), tl.int64))
        tl.store(chunk_sums + row * chunks + chunk, tl.sum(weight, 0))


@triton.jit
def write_processed(
    distances, kinds, borders, ties, tie_counts, min_p, chunk_sums, tokens, faults, processed, vocabulary,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Grid (rows, chunks): logprobs of the survivors; at temperature 0 the chosen id has 0; -inf elsewhere."""
    row, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    value = tl.full((CHUNK,), -float("inf"), tl.float32)
    if tl.load(faults + row) == 0:
        if tl.load(kinds + row) & FILTERED:
            distance, kept = load_survivors(
                distances, borders, ties, tie_counts, min_p, row, chunk, chunks, vocabulary, CHUNK, CHUNKS
            )
            other = tl.arange(0, CHUNKS)
            total = tl.sum(tl.load(chunk_sums + row * chunks + other, mask=other < chunks, other=0), 0)
            log_total = log(total.to(tl.float32) * (1.0 / WEIGHT_SCALE))
            logprob = (-bits_float(distance) - log_total) + 0.0
            value = tl.where(kept, logprob, value)
        else:
            value = tl.where(ids == tl.load(tokens + row), 0.0, value)
    tl.store(processed + row * vocabulary + ids, value, mask=ids < vocabulary)
