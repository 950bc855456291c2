"""The norm clause, alone and after a residual addition.

Element i is squared into lane i mod 16 by a fused multiply-add, ascending; lanes fold by halving;
mean = sum / width; r = 1 / sqrt(mean + eps); y = weight * (x * r). Every operation is rounded to float32.
"""

from __future__ import annotations

import math

import numpy as np

from samebits.numerics.cpu.kernel import Kernel, inlined
from samebits.numerics.cpu.lanes import (
    float_from_bits,
    fma,
    load,
    load_int64,
    load_masked,
    splat,
    store,
    store_masked,
    sum_lanes,
)


@inlined
def inverse_root_mean_square(x, width, eps):
    """1 / sqrt(mean of squares + eps) of `width` float32 at address x."""
    total = splat(np.float32(0.0))
    full = width // 16 * 16
    for i in range(0, full, 16):
        value = load(x, i)
        total = fma(value, value, total)
    if full < width:
        value = load_masked(x, full, width - full, np.float32(0.0))
        total = fma(value, value, total)
    mean = sum_lanes(total) / np.float32(width)
    return np.float32(1.0) / np.float32(math.sqrt(mean + eps))


@inlined
def scale_row(x, weight, scale, y, width):
    """y = weight * (x * scale)."""
    factor = splat(scale)
    full = width // 16 * 16
    for i in range(0, full, 16):
        store(y, i, load(weight, i) * (load(x, i) * factor))
    if full < width:
        count = width - full
        zero = np.float32(0.0)
        value = load_masked(weight, full, count, zero) * (load_masked(x, full, count, zero) * factor)
        store_masked(y, full, value, count)


@inlined
def add_rows(a, b, y, width):
    """y = a + b."""
    full = width // 16 * 16
    for i in range(0, full, 16):
        store(y, i, load(a, i) + load(b, i))
    if full < width:
        count = width - full
        zero = np.float32(0.0)
        store_masked(y, full, load_masked(a, full, count, zero) + load_masked(b, full, count, zero), count)


def rms_norm_task(arguments, index):
    """Arguments: x, residual or 0, weight, y, sum or 0, rows, width, eps bits, rows of a task."""
    x = load_int64(arguments, 0)
    residual = load_int64(arguments, 1)
    weight = load_int64(arguments, 2)
    y = load_int64(arguments, 3)
    total = load_int64(arguments, 4)
    rows = load_int64(arguments, 5)
    width = load_int64(arguments, 6)
    eps = float_from_bits(load_int64(arguments, 7))
    block = load_int64(arguments, 8)
    for row in range(index * block, min((index + 1) * block, rows)):
        offset = row * width * 4
        source = x + offset
        if residual != 0:
            source = total + offset
            add_rows(x + offset, residual + offset, source, width)
        scale_row(source, weight, inverse_root_mean_square(source, width, eps), y + offset, width)


RMS_NORM = Kernel(rms_norm_task)
"""rms_norm(x) or, with a residual, sum = x + residual and rms_norm(sum)."""
