"""The mean of rows on CPU: lanes, folded by halving, and one division (numba)."""

from __future__ import annotations

import numpy as np

from samebits.numerics.cpu.kernel import Kernel
from samebits.numerics.cpu.lanes import (
    load,
    load_int64,
    load_masked,
    splat,
    store_float,
    sum_lanes,
)


def mean_task(arguments, index):
    """Arguments: x [rows, width], y [rows], width. One task a row."""
    width = load_int64(arguments, 2)
    x = load_int64(arguments, 0) + index * width * 4
    total = splat(np.float32(0.0))
    full = width // 16 * 16
    for i in range(0, full, 16):
        total = total + load(x, i)
    if full < width:
        total = total + load_masked(x, full, width - full, np.float32(0.0))
    store_float(load_int64(arguments, 1), index, sum_lanes(total) / np.float32(width))


MEAN = Kernel(mean_task)
