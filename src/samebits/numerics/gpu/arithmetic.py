"""The contract's own functions as Triton code: exp, log, log1p, folding by halving, the total order.

Every product, sum and fused multiply-add is written out; kernels are compiled with fusion off. Divisions and
roots are the IEEE-754 ones. The constants are those of the CPU kernels, and so are the bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.cpu import coefficients as constants

LOG2_E = tl.constexpr(constants.LOG2_E)
EXP_LN2_HIGH = tl.constexpr(-constants.EXP_LN2_HIGH)
EXP_LN2_LOW = tl.constexpr(-constants.EXP_LN2_LOW)
LOG_LN2_HIGH = tl.constexpr(constants.LOG_LN2_HIGH)
LOG_LN2_LOW = tl.constexpr(constants.LOG_LN2_LOW)
ROUNDER = tl.constexpr(constants.ROUNDER)
ROUNDER_BITS = tl.constexpr(constants.ROUNDER_BITS)
EXP_LOWEST = tl.constexpr(constants.EXP_LOWEST)
EXP_HIGHEST = tl.constexpr(constants.EXP_HIGHEST)
EXP_0, EXP_1, EXP_2, EXP_3, EXP_4 = (tl.constexpr(value) for value in constants.EXP_POLYNOMIAL)
LOG_0, LOG_1, LOG_2, LOG_3 = (tl.constexpr(value) for value in constants.LOG_POLYNOMIAL)
SQRT_HALF_BITS = tl.constexpr(constants.SQRT_HALF_BITS)
MANTISSA_BITS = tl.constexpr(constants.MANTISSA_BITS)
SMALLEST_NORMAL = tl.constexpr(1.1754943508222875e-38)
INFINITY = tl.constexpr(float("inf"))
NAN_BITS = tl.constexpr(0x7FC00000)
MAGNITUDE_BITS = tl.constexpr(0x7FFFFFFF)
INFINITE_BITS = tl.constexpr(0x7F800000)


@triton.jit
def float_bits(x):
    """int32 bits of float32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def bits_float(bits):
    """The float32 of int32 bits."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def is_finite(x):
    """Whether a float32 is neither infinite nor NaN, by its bits."""
    return (float_bits(x) & MAGNITUDE_BITS) < INFINITE_BITS


@triton.jit
def power_of_two(exponent):
    return bits_float((exponent + 127) << 23)


@triton.jit
def exp(x):
    """exp of the contract; x float32."""
    x = tl.where(x < EXP_LOWEST, EXP_LOWEST, x)
    x = tl.where(x > EXP_HIGHEST, EXP_HIGHEST, x)
    rounded = tl.fma(x, LOG2_E, ROUNDER)
    exponent = float_bits(rounded) - ROUNDER_BITS
    count = rounded - ROUNDER
    r = tl.fma(count, EXP_LN2_LOW, tl.fma(count, EXP_LN2_HIGH, x))
    polynomial = tl.fma(r, EXP_4, EXP_3)
    polynomial = tl.fma(polynomial, r, EXP_2)
    polynomial = tl.fma(polynomial, r, EXP_1)
    polynomial = tl.fma(polynomial, r, EXP_0)
    value = tl.fma(r * r, polynomial, r) + 1.0
    half = exponent >> 1
    return value * power_of_two(half) * power_of_two(exponent - half)


@triton.jit
def _log_of_parts(f, exponent, lost):
    """log of (1 + f) * 2**exponent, `lost` added to the low part."""
    s = tl.div_rn(f, f + 2.0)
    z = s * s
    remainder = tl.fma(z, LOG_3, LOG_2)
    remainder = tl.fma(remainder, z, LOG_1)
    remainder = tl.fma(remainder, z, LOG_0)
    remainder = z * remainder
    half_square = f * f * 0.5
    count = exponent.to(tl.float32)
    tail = tl.fma(s, half_square + remainder, lost)
    return tl.fma(count, LOG_LN2_HIGH, tail - half_square + f)


@triton.jit
def log(x):
    """log of the contract; x float32."""
    is_tiny = x < SMALLEST_NORMAL
    scaled = tl.where(is_tiny, x * 33554432.0, x)
    shifted = float_bits(scaled) - SQRT_HALF_BITS
    exponent = shifted >> 23
    exponent = tl.where(is_tiny, exponent - 25, exponent)
    f = bits_float((shifted & MANTISSA_BITS) + SQRT_HALF_BITS) - 1.0
    value = _log_of_parts(f, exponent, exponent.to(tl.float32) * LOG_LN2_LOW)
    value = tl.where(x == INFINITY, x, value)
    value = tl.where(x < 0.0, bits_float(tl.full(x.shape, NAN_BITS, tl.int32)), value)
    value = tl.where(x == 0.0, -INFINITY, value)
    return tl.where(x != x, x, value)


@triton.jit
def log1p(x):
    """log1p of the contract; x float32."""
    u = x + 1.0
    shifted = float_bits(u) - SQRT_HALF_BITS
    exponent = shifted >> 23
    reduced = bits_float((shifted & MANTISSA_BITS) + SQRT_HALF_BITS) - 1.0
    lost = tl.div_rn(tl.where(exponent > 1, 1.0 - (u - x), x - (u - 1.0)), u)
    lost = tl.where(exponent > 24, 0.0, lost)
    lost = tl.where(exponent == 0, 0.0, lost)
    f = tl.where(exponent == 0, x, reduced)
    value = _log_of_parts(f, exponent, tl.fma(exponent.to(tl.float32), LOG_LN2_LOW, lost))
    value = tl.where((float_bits(x) & MAGNITUDE_BITS) < 0x33000000, x, value)
    value = tl.where(x == INFINITY, x, value)
    value = tl.where(x < -1.0, bits_float(tl.full(x.shape, NAN_BITS, tl.int32)), value)
    value = tl.where(x == -1.0, -INFINITY, value)
    return tl.where(x != x, x, value)


@triton.jit
def fold_halves(x, COUNT: tl.constexpr):
    """Fold the last axis of x [ROWS, COUNT] by halving: j + (j + COUNT / 2), and so on -> [ROWS].

    Every sum has two terms, so that no layout can change a bit.
    """
    rows: tl.constexpr = x.shape[0]
    size: tl.constexpr = COUNT
    if size == 1:
        return tl.reshape(x, (rows,))
    else:
        return fold_halves(tl.sum(tl.reshape(x, (rows, 2, size // 2)), axis=1), size // 2)


@triton.jit
def order_of_bits(bits):
    """int32 bits of a float32 -> int32 that ascends along the total order (a better token first)."""
    flipped = bits ^ ((bits >> 31) & MAGNITUDE_BITS)
    return ~tl.where(bits == -0x80000000, 0, flipped)


@triton.jit
def bits_of_order(order):
    """int32 order -> int32 bits of the float32 (+0 for -0)."""
    flipped = ~order
    return flipped ^ ((flipped >> 31) & MAGNITUDE_BITS)
