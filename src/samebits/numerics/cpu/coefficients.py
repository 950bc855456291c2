"""Constants of exp, log and log1p in float32, for the kernels of every device. Nothing is imported here: an engine on a
GPU does without the CPU's compiler.
"""

from __future__ import annotations

LOG2_E = 1.4426950408889634
# ln 2 in two parts; the high parts have trailing zeros, so that n * high is exact for every exponent n.
EXP_LN2_HIGH, EXP_LN2_LOW = 0.693145751953125, 1.42860677e-06
LOG_LN2_HIGH, LOG_LN2_LOW = 0.693138122558594, 9.05800061445916e-06
# 1.5 * 2**23: adding it leaves the nearest integer in the low bits of the sum.
ROUNDER, ROUNDER_BITS = 12582912.0, 0x4B400000
EXP_LOWEST, EXP_HIGHEST = -104.0, 89.0
# (exp(r) - 1 - r) / r**2 over |r| <= ln 2 / 2; minimax to 3.1e-9 relative.
EXP_POLYNOMIAL = (
    0.4999999403953552,
    0.1666652113199234,
    0.04166838899254799,
    0.00836874540621519,
    0.0013814540579915047,
)
# log(1 + f) = f - f*f/2 + s*(f*f/2 + R(s*s)), s = f / (2 + f): odd minimax series of the hyperbolic form.
LOG_POLYNOMIAL = (0.6666666269302368, 0.40000972151756287, 0.2849878668785095, 0.24279078841209412)
SQRT_HALF_BITS = 0x3F3504F3
MANTISSA_BITS = 0x007FFFFF
