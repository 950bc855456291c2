"""Query and key norm, rotary embedding, and the store of keys and values, one row of a batch at a time.

Keys are stored [pages, kv_heads, page_tokens / 16, head_dim, 16] (sixteen keys beside each other, so that
scores vectorise over keys), values [pages, kv_heads, page_tokens, head_dim]; both float32.
"""

from __future__ import annotations

import numpy as np

from samebits.numerics.cpu.kernel import Kernel, inlined
from samebits.numerics.cpu.lanes import (
    all_finite,
    float_from_bits,
    load,
    load_float,
    load_int64,
    load_masked,
    store,
    store_byte,
    store_float,
    store_masked,
)
from samebits.numerics.cpu.norm import inverse_root_mean_square, scale_row
from samebits.numerics.cpu.scratch import make_scratch

MAX_HEAD_DIM = 256
ZERO = np.float32(0.0)
head_scratch = make_scratch(MAX_HEAD_DIM)


@inlined
def rotate(x, y, table, half, width):
    """y = x rotated; products and their sum or difference are rounded one by one. x may be y."""
    for i in range(0, half, 16):
        count = min(half - i, 16)
        low = load_masked(x, i, count, ZERO)
        high = load_masked(x, half + i, count, ZERO)
        cosine = load_masked(table, i, count, ZERO)
        sine = load_masked(table, half + i, count, ZERO)
        rotated_low = low * cosine - high * sine
        rotated_high = high * cosine + low * sine
        store_masked(y, i, rotated_low, count)
        store_masked(y, half + i, rotated_high, count)
    for i in range(2 * half, width, 16):
        count = min(width - i, 16)
        store_masked(y, i, load_masked(x, i, count, ZERO), count)


@inlined
def norm_rotate(x, y, norm, eps, table, half, width):
    """One head: norm where a weight is given, then rotation."""
    source = x
    if norm != 0:
        scale_row(x, norm, inverse_root_mean_square(x, width, eps), y, width)
        source = y
    rotate(source, y, table, half, width)


@inlined
def finite_row(x, width):
    for i in range(0, width, 16):
        if not all_finite(load(x, i)):
            return False
    return True


@inlined
def store_key(key, page_keys, offset, width):
    """Scatter a key into its panel of sixteen."""
    panel = page_keys + (offset // 16 * 16 * width + offset % 16) * 4
    for i in range(width):
        store_float(panel, i * 16, load_float(key, i))


@inlined
def store_zeros(page_keys, page_values, offset, width):
    panel = page_keys + (offset // 16 * 16 * width + offset % 16) * 4
    for i in range(width):
        store_float(panel, i * 16, ZERO)
        store_float(page_values, offset * width + i, ZERO)


def norm_rope_store_task(arguments, index):
    """Arguments in the order of the loads below; a task is a block of rows."""
    qkv = load_int64(arguments, 0)
    queries = load_int64(arguments, 1)
    query_heads = load_int64(arguments, 2)
    kv_heads = load_int64(arguments, 3)
    width = load_int64(arguments, 4)
    query_norm = load_int64(arguments, 5)
    key_norm = load_int64(arguments, 6)
    eps = float_from_bits(load_int64(arguments, 7))
    rope = load_int64(arguments, 8)
    half = load_int64(arguments, 9)
    positions = load_int64(arguments, 10)
    slots = load_int64(arguments, 11)
    faults = load_int64(arguments, 12)
    keys = load_int64(arguments, 13)
    values = load_int64(arguments, 14)
    page_tokens = load_int64(arguments, 15)
    rows = load_int64(arguments, 16)
    block = load_int64(arguments, 17)
    head_bytes = width * 4
    row_bytes = (query_heads + 2 * kv_heads) * head_bytes
    key = head_scratch()
    for row in range(index * block, min((index + 1) * block, rows)):
        table = rope + load_int64(positions, row) * half * 8
        source = qkv + row * row_bytes
        target = queries + row * query_heads * head_bytes
        for head in range(query_heads):
            step = head * head_bytes
            norm_rotate(source + step, target + step, query_norm, eps, table, half, width)
        slot = load_int64(slots, row)
        page = slot // page_tokens
        offset = slot % page_tokens
        finite = True
        for head in range(kv_heads):
            start = (page * kv_heads + head) * page_tokens * head_bytes
            step = (query_heads + head) * head_bytes
            norm_rotate(source + step, key, key_norm, eps, table, half, width)
            value = source + step + kv_heads * head_bytes
            finite = finite and finite_row(key, width) and finite_row(value, width)
            store_key(key, keys + start, offset, width)
            for i in range(0, width, 16):
                store(values + start, offset * width + i, load(value, i))
        if not finite:
            for head in range(kv_heads):
                start = (page * kv_heads + head) * page_tokens * head_bytes
                store_zeros(keys + start, values + start, offset, width)
            store_byte(faults, row, np.uint8(1))


NORM_ROPE_STORE = Kernel(norm_rope_store_task)
