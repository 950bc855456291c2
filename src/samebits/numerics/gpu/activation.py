"""The gated activation: silu(gate) * up, silu(g) = g / (1 + exp(-g)), every step rounded to float32."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.gpu import rough_silu
from samebits.numerics.gpu.arithmetic import exp
from samebits.numerics.gpu.checks import ACTIVATIONS, check_tensor, result
from samebits.numerics.gpu.configuration import Launch, start
from samebits.numerics.gpu.dependent import wait_ahead
from samebits.numerics.gpu.rough_silu import gated

BLOCK = 1024
SILU_LAUNCH = Launch(warps=4, stages=1)
MANY_ROWS = 1024
"""From here on estimates serve where they do: a prefill step is short of energy, which instructions cost."""


@triton.jit
def silu_mul_rows(
    gate_up, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROUGH: tl.constexpr, DEPENDENT: tl.constexpr
):
    """Grid (rows, blocks of a row). ROUGH: by estimates where they round as the clause does."""
    wait_ahead(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = gate_up + row * (2 * WIDTH) + columns
    gate = tl.load(place, mask=columns < WIDTH, other=0.0).to(tl.float32)
    up = tl.load(place + WIDTH, mask=columns < WIDTH, other=0.0).to(tl.float32)
    if ROUGH:
        value = gated(gate, up)
    else:
        value = tl.div_rn(gate, 1.0 + exp(-gate)) * up
    tl.store(y + row * WIDTH + columns, value.to(y.dtype.element_ty), mask=columns < WIDTH)


def silu_mul(gate_up: Tensor, out: Tensor | None = None, launch: Launch = SILU_LAUNCH) -> Tensor:
    """silu(first half) * second half. act [rows, 2 width] -> act [rows, width]."""
    rows, double = check_tensor("gate_up", gate_up, ACTIVATIONS, (None, None)).shape
    if double % 2:
        raise NumericsError(f"gate_up has {double} columns, an odd number")
    width = double // 2
    y = result("activation output", out, gate_up, gate_up.dtype, (rows, width))
    if rows:
        grid = (rows, triton.cdiv(width, BLOCK))
        rough = rows >= MANY_ROWS and rough_silu.serves(gate_up.dtype, gate_up.device)
        start(silu_mul_rows, grid, gate_up, y, WIDTH=width, BLOCK=BLOCK, ROUGH=rough, launch=launch)
    return y
