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
from samebits.numerics.gpu.configuration import Launch, Start, start
from samebits.numerics.gpu.dependent import allow_next, wait_ahead

LANES = CONTRACT.device_reduction_lanes
NORM_LAUNCH = Launch(warps=8, stages=1)
MANY_ROWS, MANY_ROWS_LAUNCH = 192, Launch(warps=1, stages=1)
"""Where rows fill the card, a row is one warp's, which folds without waiting for others."""
PREFILL_ROWS, PREFILL_LAUNCH = 1024, Launch(warps=2, stages=1)
"""From here on a row is read once and stays in the registers of two warps, which saves the card energy."""


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
    HELD: tl.constexpr,
    EARLY: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (rows,). y = norm(x), or of the sum with the residual, which is written to `total`. HELD: a row stays in
    registers; else it is read twice. EARLY: its weights stay there too, and are on their way before the wait; else they
    are read where they are used."""
    columns = tl.arange(0, LANES)
    factors = ()
    values = ()
    if EARLY:
        allow_next(DEPENDENT)
        for begin in tl.static_range(0, WIDTH, LANES):
            factor = tl.load(weight + begin + columns, mask=begin + columns < WIDTH, other=0.0)
            factors = factors + (factor,)  # type: ignore[assignment]
    wait_ahead(DEPENDENT)
    row = tl.program_id(0).to(tl.int64) * WIDTH
    if HELD:
        for begin in tl.static_range(0, WIDTH, LANES):
            value = load_part(x + row, residual + row, begin + columns, WIDTH, ADDED)
            values = values + (value,)  # type: ignore[assignment]
    squares = tl.zeros((LANES,), tl.float32)
    for begin in tl.static_range(0, WIDTH, LANES):
        if HELD:
            value = values[begin // LANES]  # type: ignore[misc]
        else:
            value = load_part(x + row, residual + row, begin + columns, WIDTH, ADDED)
        squares = tl.fma(value.to(tl.float32), value.to(tl.float32), squares)
    scale = inverse_root_mean_square(tl.reshape(squares, (1, LANES)), LANES, WIDTH, eps)
    for begin in tl.static_range(0, WIDTH, LANES):
        place = begin + columns
        if HELD:
            value = values[begin // LANES]  # type: ignore[misc]
        else:
            value = load_part(x + row, residual + row, place, WIDTH, ADDED)
        if EARLY:
            factor = factors[begin // LANES]  # type: ignore[misc]
        else:
            factor = tl.load(weight + place, mask=place < WIDTH, other=0.0)
        if ADDED:
            tl.store(total + row + place, value, mask=place < WIDTH)
        normed = factor.to(tl.float32) * (value.to(tl.float32) * scale)
        tl.store(y + row + place, normed.to(y.dtype.element_ty), mask=place < WIDTH)


def norm_launch(rows: int) -> Launch:
    if rows >= PREFILL_ROWS:
        return PREFILL_LAUNCH
    return MANY_ROWS_LAUNCH if rows >= MANY_ROWS else NORM_LAUNCH


def places_of_row(rows: int, constant: bool) -> dict[str, bool]:
    """What stays in registers, for the kernel."""
    early = constant and rows < MANY_ROWS
    return {"HELD": early or rows >= PREFILL_ROWS, "EARLY": early}


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor | None = None,
    launch: Launch | None = None,
    constant: bool = True,
    start: Start = start,
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
            **places_of_row(rows, constant),
            launch=launch or norm_launch(rows),
        )
    return y


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    out: tuple[Tensor, Tensor] | None = None,
    launch: Launch | None = None,
    start: Start = start,
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
            **places_of_row(rows, constant=True),
            launch=launch or norm_launch(rows),
        )
    return y, total
