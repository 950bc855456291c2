"""Embedding, gated activation and log-sum-exp: operators of one row without a matrix."""

from __future__ import annotations

import numpy as np

from samebits.numerics.contract import CONTRACT
from samebits.numerics.cpu.kernel import Kernel, inlined
from samebits.numerics.cpu.lanes import (
    LANES,
    fma,
    larger,
    largest_lane,
    load,
    load_int64,
    load_masked,
    load_widened,
    splat,
    store,
    store_float,
    store_masked,
    sum_lanes,
)
from samebits.numerics.cpu.math import exp32, log32

VOCABULARY_BLOCK = CONTRACT.vocabulary_block
MINUS_INFINITY = np.float32(-np.inf)
ZERO = np.float32(0.0)
ONE = np.float32(1.0)


def _make_embed(storage: str) -> Kernel:
    element_bytes = 4 if storage == "float32" else 2

    def task(arguments, index):
        """Arguments: ids, table, y, rows, width (a multiple of 16), rows of a task."""
        ids = load_int64(arguments, 0)
        table = load_int64(arguments, 1)
        y = load_int64(arguments, 2)
        rows = load_int64(arguments, 3)
        width = load_int64(arguments, 4)
        block = load_int64(arguments, 5)
        for row in range(index * block, min((index + 1) * block, rows)):
            source = table + load_int64(ids, row) * width * element_bytes
            for i in range(0, width, 16):
                store(y + row * width * 4, i, load_widened(storage, source, i))

    task.__name__ = task.__qualname__ = f"embed_{storage}"
    return Kernel(task)


EMBED = {storage: _make_embed(storage) for storage in ("float32", "float16", "bfloat16")}


@inlined
def silu_times(gate, up):
    """gate / (1 + exp(-gate)), rounded, times up."""
    one = splat(ONE)
    return gate / (one + exp32(splat(ZERO) - gate)) * up


def silu_mul_task(arguments, index):
    """Arguments: gate_up [rows, 2 width], y [rows, width], rows, width, rows of a task."""
    gate_up = load_int64(arguments, 0)
    y = load_int64(arguments, 1)
    rows = load_int64(arguments, 2)
    width = load_int64(arguments, 3)
    block = load_int64(arguments, 4)
    full = width // LANES * LANES
    for row in range(index * block, min((index + 1) * block, rows)):
        gate = gate_up + row * width * 8
        up = gate + width * 4
        out = y + row * width * 4
        for i in range(0, full, LANES):
            store(out, i, silu_times(load(gate, i), load(up, i)))
        if full < width:
            count = width - full
            value = silu_times(load_masked(gate, full, count, ZERO), load_masked(up, full, count, ZERO))
            store_masked(out, full, value, count)


SILU_MUL = Kernel(silu_mul_task)


@inlined
def finite_base(value):
    """What exponents are taken relative to: the maximum, or 0 where it is -inf (so that -inf gives 0)."""
    return ZERO if value == MINUS_INFINITY else value


@inlined
def block_maximum(x, start, end):
    best = splat(MINUS_INFINITY)
    full = start + (end - start) // LANES * LANES
    for i in range(start, full, LANES):
        best = larger(load(x, i), best)
    if full < end:
        best = larger(load_masked(x, full, end - full, MINUS_INFINITY), best)
    return largest_lane(best)


@inlined
def block_sum(x, start, end, base):
    """Sum of exp(x - base), element i in lane i mod 16, ascending, lanes folded by halving."""
    shift = splat(base)
    total = splat(ZERO)
    full = start + (end - start) // LANES * LANES
    for i in range(start, full, LANES):
        total = total + exp32(load(x, i) - shift)
    if full < end:
        total = total + exp32(load_masked(x, full, end - full, MINUS_INFINITY) - shift)
    return sum_lanes(total)


def log_sum_exp_task(arguments, index):
    """Arguments: logits [rows, vocabulary], y [rows], vocabulary. One task a row."""
    vocabulary = load_int64(arguments, 2)
    x = load_int64(arguments, 0) + index * vocabulary * 4
    y = load_int64(arguments, 1)
    maximum = MINUS_INFINITY
    total = ZERO
    for start in range(0, vocabulary, VOCABULARY_BLOCK):
        end = min(start + VOCABULARY_BLOCK, vocabulary)
        block = block_maximum(x, start, end)
        block_total = block_sum(x, start, end, finite_base(block))
        joint = larger(block, maximum)
        base = finite_base(joint)
        total = fma(total, exp32(maximum - base), block_total * exp32(block - base))
        maximum = joint
    store_float(y, index, maximum + log32(total))


LOG_SUM_EXP = Kernel(log_sum_exp_task)
