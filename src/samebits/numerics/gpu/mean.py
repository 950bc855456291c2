"""The mean of rows on a GPU: lanes, folded by halving, and one division."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu.arithmetic import fold_halves
from samebits.numerics.gpu.checks import ACTIVATIONS, check_tensor, result
from samebits.numerics.gpu.configuration import Launch, start

LANES = CONTRACT.device_reduction_lanes
MEAN_LAUNCH = Launch(warps=4, stages=1)


@triton.jit
def mean_rows(x, y, width, LANES: tl.constexpr):
    """Grid (rows,): element i is added to lane i mod LANES, ascending."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.zeros((LANES,), tl.float32)
    for begin in range(0, width, LANES):
        columns = begin + tl.arange(0, LANES)
        lanes += tl.load(x + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    total = fold_halves(tl.reshape(lanes, (1, LANES)), LANES)
    mean = tl.div_rn(total, tl.zeros((1,), tl.float32) + width.to(tl.float32))
    tl.store(y + row + tl.arange(0, 1), mean.to(y.dtype.element_ty))


def mean(x: Tensor, out: Tensor | None = None) -> Tensor:
    """act [rows, width] -> act [rows]; sums in float32, rounded to act once."""
    rows, width = check_tensor("mean input", x, ACTIVATIONS, (None, None)).shape
    y = result("mean output", out, x, x.dtype, (rows,))
    if rows:
        start(mean_rows, (rows,), x, y, width, LANES=LANES, launch=MEAN_LAUNCH)
    return y
