"""The norm clause on a GPU: one program owns a row.

Element i is squared into lane i mod LANES by a fused multiply-add, ascending; lanes fold by halving.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu.arithmetic import fold_halves
from samebits.numerics.gpu.checks import ACTIVATIONS, check_tensor, result
from samebits.numerics.gpu.configuration import Launch, start
from samebits.numerics.gpu.dependent import allow_next, wait_ahead

LANES = CONTRACT.device_reduction_lanes
NORM_LAUNCH = Launch(warps=8, stages=1)


@triton.jit
def inverse_root_mean_square(squares, COUNT: tl.constexpr, WIDTH: tl.constexpr, eps):
    """1 / sqrt(mean + eps) of rows whose lanes are `squares` [ROWS, COUNT] -> [ROWS]."""
    sums = fold_halves(squares, COUNT)
    mean = tl.div_rn(sums, tl.full(sums.shape, WIDTH, tl.float32))
    return tl.div_rn(tl.full(sums.shape, 1.0, tl.float32), tl.sqrt_rn(mean + eps))


@triton.jit
def load_part(x, residual, columns, WIDTH: tl.constexpr, ADDED: tl.constexpr):
    """Part of one row as act, with the residual added and rounded to act where there is one."""
    value = tl.load(x + columns, mask=columns < WIDTH, other=0.0)
    if ADDED:
        other = tl.load(residual + columns, mask=columns < WIDTH, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(x.dtype.element_ty)
    return value


@triton.jit
def rms_norm_rows(
    x,
    residual,
    weight,
    y,
    total,
    eps,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    ADDED: tl.constexpr,
    AHEAD: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (rows,). y = norm(x), or of the sum with the residual, which is written to `total`. With AHEAD the weights
    are on their way before the wait."""
    if AHEAD:
        allow_next(DEPENDENT)
    else:
        wait_ahead(DEPENDENT)
    columns = tl.arange(0, LANES)
    factors = ()
    for begin in tl.static_range(0, WIDTH, LANES):
        factor = tl.load(weight + begin + columns, mask=begin + columns < WIDTH, other=0.0)
        factors = factors + (factor,)  # type: ignore[assignment]
    if AHEAD:
        wait_ahead(DEPENDENT)
    row = tl.program_id(0).to(tl.int64) * WIDTH
    values = ()
    for begin in tl.static_range(0, WIDTH, LANES):
        value = load_part(x + row, residual + row, begin + columns, WIDTH, ADDED)
        values = values + (value,)  # type: ignore[assignment]
    squares = tl.zeros((LANES,), tl.float32)
    for part in tl.static_range(len(values)):
        wide = values[part].to(tl.float32)  # type: ignore[misc,var-annotated]
        squares = tl.fma(wide, wide, squares)
    scale = inverse_root_mean_square(tl.reshape(squares, (1, LANES)), LANES, WIDTH, eps)
    for part in tl.static_range(len(values)):
        place = part * LANES + columns
        if ADDED:
            tl.store(total + row + place, values[part], mask=place < WIDTH)
        normed = factors[part].to(tl.float32) * (values[part].to(tl.float32) * scale)
        tl.store(y + row + place, normed.to(y.dtype.element_ty), mask=place < WIDTH)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor | None = None,
    constant: bool = True,
    launch: Launch = NORM_LAUNCH,
) -> Tensor:
    """Norm clause. x act [rows, width], weight [width] -> act [rows, width]. `constant`: no kernel that may still run
    writes `weight`."""
    rows, width = check_tensor("norm input", x, ACTIVATIONS, (None, None)).shape
    check_tensor("norm weight", weight, ACTIVATIONS, (width,))
    y = result("norm output", out, x, x.dtype, (rows, width))
    if rows:
        start(
            rms_norm_rows,
            (rows,),
            x,
            x,
            weight,
            y,
            y,
            eps,
            WIDTH=width,
            LANES=LANES,
            ADDED=False,
            AHEAD=constant,
            launch=launch,
        )
    return y


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    out: tuple[Tensor, Tensor] | None = None,
    launch: Launch = NORM_LAUNCH,
) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual), the sum rounded to act first. `out` may not overlap the inputs; no kernel
    that may still run writes `weight`."""
    rows, width = check_tensor("norm input", x, ACTIVATIONS, (None, None)).shape
    check_tensor("residual", residual, (x.dtype,), (rows, width))
    check_tensor("norm weight", weight, ACTIVATIONS, (width,))
    y = result("norm output", None if out is None else out[0], x, x.dtype, (rows, width))
    total = result("residual output", None if out is None else out[1], x, x.dtype, (rows, width))
    if rows:
        start(
            rms_norm_rows,
            (rows,),
            x,
            residual,
            weight,
            y,
            total,
            eps,
            WIDTH=width,
            LANES=LANES,
            ADDED=True,
            AHEAD=True,
            launch=launch,
        )
    return y, total
