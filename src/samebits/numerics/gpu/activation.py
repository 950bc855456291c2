"""The gated activation: silu(gate) * up, silu(g) = g / (1 + exp(-g)), every step rounded to float32.

A gate of 16 bits has 65,536 values. A shorter sequence of instructions serves such gates where it was seen, on the
device itself, to give the bits of the long one for every single value.
"""

from __future__ import annotations

import functools
import logging

import torch
import triton
import triton.language as tl
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.gpu import arithmetic
from samebits.numerics.gpu.arithmetic import bits_float, exp, float_bits
from samebits.numerics.gpu.checks import ACTIVATIONS, check_tensor, result
from samebits.numerics.gpu.configuration import Launch, start
from samebits.numerics.gpu.dependent import wait_ahead

BLOCK = 1024
SILU_LAUNCH = Launch(warps=4, stages=1)
SMALL = tl.constexpr(80.0)
"""exp(-g) of more vanishes beside 1."""
LARGE = tl.constexpr(88.7)
"""exp(-g) of less than its negative is infinite, for gates of 16 bits."""
SIXTEENTH = tl.constexpr(0.0625)

log = logging.getLogger(__name__)


@triton.jit
def negative_inverse(x):
    """-1 / x, nearly; x float32 and normal, as its inverse is. NVIDIA only."""
    return tl.inline_asm_elementwise(
        "{ .reg .f32 t; neg.f32 t, $1; rcp.approx.ftz.f32 $0, t; }",
        "=f,f",
        [x],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def short_silu(gate):
    """silu of float32 that were 16 bits wide. Signs are turned where that saves an instruction and no bit: `r` is the
    negative of the clause's. Divisor and dividend are a sixteenth of the clause's, so that the inverse is a normal
    number, and the quotient is corrected twice by its own remainder, in a form that keeps a negative zero."""
    x = tl.minimum(gate, SMALL)
    rounded = tl.fma(x, -arithmetic.LOG2_E, arithmetic.ROUNDER)
    count = rounded - arithmetic.ROUNDER
    r = tl.fma(count, -arithmetic.EXP_LN2_LOW, tl.fma(count, -arithmetic.EXP_LN2_HIGH, x))
    polynomial = tl.fma(r, -arithmetic.EXP_4, arithmetic.EXP_3)
    polynomial = tl.fma(polynomial, r, -arithmetic.EXP_2)
    polynomial = tl.fma(polynomial, r, arithmetic.EXP_1)
    polynomial = tl.fma(polynomial, r, -arithmetic.EXP_0)
    value = 1.0 - tl.fma(r * r, polynomial, r)
    exponential = bits_float(float_bits(value) + (float_bits(rounded) << 23))
    divisor = tl.fma(exponential, SIXTEENTH, SIXTEENTH)
    inverse = negative_inverse(divisor)
    inverse = tl.fma(tl.fma(divisor, inverse, 1.0), inverse, inverse)
    dividend = gate * -SIXTEENTH
    quotient = dividend * inverse
    quotient = tl.fma(tl.fma(divisor, quotient, dividend), inverse, quotient)
    quotient = tl.fma(tl.fma(divisor, quotient, dividend), inverse, quotient)
    large = tl.where(gate > 0.0, gate, gate * 0.0)
    return tl.where(tl.abs(gate) > LARGE, large, quotient)


@triton.jit
def silu(gate, SHORTENED: tl.constexpr):
    if SHORTENED:
        return short_silu(gate)
    else:
        return tl.div_rn(gate, 1.0 + exp(-gate))


@triton.jit
def silu_mul_rows(
    gate_up, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SHORTENED: tl.constexpr, DEPENDENT: tl.constexpr
):
    """Grid (rows, blocks of a row)."""
    wait_ahead(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = gate_up + row * (2 * WIDTH) + columns
    gate = tl.load(place, mask=columns < WIDTH, other=0.0).to(tl.float32)
    up = tl.load(place + WIDTH, mask=columns < WIDTH, other=0.0).to(tl.float32)
    value = silu(gate, SHORTENED) * up
    tl.store(y + row * WIDTH + columns, value.to(y.dtype.element_ty), mask=columns < WIDTH)


@triton.jit
def silu_of_gates(gates, y, BLOCK: tl.constexpr, SHORTENED: tl.constexpr):
    """silu alone, float32."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + place, silu(tl.load(gates + place).to(tl.float32), SHORTENED))


@functools.cache
def is_short_silu_exact(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `short_silu` gives the bits of the clause for every gate of this type on this device. Waits for it at
    the first call."""
    if dtype.itemsize != 2 or device.type != "cuda" or torch.version.cuda is None:
        return False
    gates = torch.arange(1 << 16, dtype=torch.int32, device=device).to(torch.int16).view(dtype)
    found = [torch.empty(1 << 16, device=device) for _ in range(2)]
    for y, shortened in zip(found, (False, True), strict=True):
        start(silu_of_gates, (64,), gates, y, BLOCK=1024, SHORTENED=shortened, launch=SILU_LAUNCH)
    long, short = found
    same = (long.view(torch.int32) == short.view(torch.int32)) | (long.isnan() & short.isnan())
    if not bool(same.all()):
        log.info(
            "the short gated activation differs for %d gates of %s: the long one serves",
            int((~same).sum()),
            dtype,
        )
    return bool(same.all())


def silu_mul(
    gate_up: Tensor, out: Tensor | None = None, launch: Launch = SILU_LAUNCH, block: int = BLOCK
) -> Tensor:
    """silu(first half) * second half. act [rows, 2 width] -> act [rows, width]."""
    rows, double = check_tensor("gate_up", gate_up, ACTIVATIONS, (None, None)).shape
    if double % 2:
        raise NumericsError(f"gate_up has {double} columns, an odd number")
    width = double // 2
    y = result("activation output", out, gate_up, gate_up.dtype, (rows, width))
    if rows:
        start(
            silu_mul_rows,
            (rows, triton.cdiv(width, block)),
            gate_up,
            y,
            WIDTH=width,
            BLOCK=block,
            SHORTENED=is_short_silu_exact(gate_up.dtype, gate_up.device),
            launch=launch,
        )
    return y
