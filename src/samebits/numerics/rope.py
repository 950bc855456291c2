"""The RoPE clause: a table of cosines and sines, computed once in float64 and rounded to float32.

No libm enters: inverse frequencies come from decimal arithmetic, and the trigonometry below uses only
float64 additions, multiplications and roundings to integers, each of which IEEE-754 defines exactly.
"""

from __future__ import annotations

import decimal
from collections.abc import Mapping
from decimal import Decimal

import numpy as np
import torch
from torch import Tensor

from samebits.errors import NumericsError

# pi / 2 in three parts of at most 33 bits, so that a count below 2**20 times the first two is exact.
HALF_PI_FIRST = float.fromhex("0x1.921fb544p+0")
HALF_PI_SECOND = float.fromhex("0x1.0b4611a6p-34")
HALF_PI_THIRD = float.fromhex("0x1.3198a2e037073p-69")
TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
PI_DIGITS = "3.14159265358979323846264338327950288419716939937510"
MAX_POSITIONS = 1 << 20
POSITIONS_AT_ONCE = 512

# Taylor coefficients as exact ratios rounded once: |r| <= pi / 4 leaves less than 2**-52.
SINE = tuple(1.0 / n for n in (1, -6, 120, -5040, 362880, -39916800, 6227020800, -1307674368000))
COSINE = tuple(1.0 / n for n in (1, -2, 24, -720, 40320, -3628800, 479001600, -87178291200, 20922789888000))


def inverse_frequencies(
    theta: float, rotary_dim: int, kind: str = "default", scaling: Mapping[str, float] | None = None
) -> np.ndarray:
    """theta ** (-2 i / rotary_dim), scaled as `kind` says; float64 [rotary_dim / 2], correctly rounded.

    `llama3` needs factor, low_freq_factor, high_freq_factor and original_max_position_embeddings in `scaling`.
    Raises NumericsError for another kind or a missing value.
    """
    if kind not in ("default", "llama3"):
        raise NumericsError(f"RoPE kind {kind!r} is not supported (default and llama3 are)")
    if rotary_dim <= 0 or rotary_dim % 2:
        raise NumericsError(f"rotary dimension must be even and positive, not {rotary_dim}")
    with decimal.localcontext() as context:
        context.prec = 50
        context.rounding = decimal.ROUND_HALF_EVEN
        base = Decimal(theta)
        frequencies = [base ** (Decimal(-2 * i) / Decimal(rotary_dim)) for i in range(rotary_dim // 2)]
        if kind == "llama3":
            frequencies = [_scale_llama3(frequency, scaling or {}) for frequency in frequencies]
        return np.array([float(frequency) for frequency in frequencies])


def _scale_llama3(frequency: Decimal, scaling: Mapping[str, float]) -> Decimal:
    """Llama 3's rule: long waves are slowed by `factor`, short ones kept, those between are blended."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for name in names:
        if name not in scaling:
            raise NumericsError(f"RoPE kind llama3 needs {name}")
    factor, low, high, original = (Decimal(scaling[name]) for name in names)
    wave = 2 * Decimal(PI_DIGITS) / frequency
    if wave < original / high:
        return frequency
    if wave > original / low:
        return frequency / factor
    share = (original / wave - low) / (high - low)
    return (1 - share) * frequency / factor + share * frequency


def cosine_sine(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of float64 angles from 0 to 2**20, within 2**-50; the same bits on every machine."""
    count = np.rint(angles * TWO_OVER_PI)
    r = ((angles - count * HALF_PI_FIRST) - count * HALF_PI_SECOND) - count * HALF_PI_THIRD
    square = r * r
    sine = np.full_like(r, SINE[-1])
    for coefficient in SINE[-2::-1]:
        sine = sine * square + coefficient
    sine = sine * r
    cosine = np.full_like(r, COSINE[-1])
    for coefficient in COSINE[-2::-1]:
        cosine = cosine * square + coefficient
    quadrant = count.astype(np.int64) & 3
    swapped = (quadrant & 1) == 1
    cosine_out = np.where(swapped, sine, cosine)
    sine_out = np.where(swapped, cosine, sine)
    cosine_out = np.where((quadrant == 1) | (quadrant == 2), -cosine_out, cosine_out)
    sine_out = np.where(quadrant >= 2, -sine_out, sine_out)
    return cosine_out, sine_out


def rope_table(
    positions: int,
    theta: float,
    rotary_dim: int,
    kind: str = "default",
    scaling: Mapping[str, float] | None = None,
) -> Tensor:
    """float32 [positions, 2 (cos, sin), rotary_dim / 2]; angle = position * inverse frequency in float64."""
    if not 0 < positions <= MAX_POSITIONS:
        raise NumericsError(f"RoPE table for {positions} positions; 1 to {MAX_POSITIONS} are supported")
    frequencies = inverse_frequencies(theta, rotary_dim, kind, scaling)
    table = np.empty((positions, 2, rotary_dim // 2), np.float32)
    for start in range(0, positions, POSITIONS_AT_ONCE):
        end = min(start + POSITIONS_AT_ONCE, positions)
        angles = np.arange(start, end, dtype=np.float64)[:, None] * frequencies[None, :]
        cosine, sine = cosine_sine(angles)
        table[start:end, 0] = cosine
        table[start:end, 1] = sine
    return torch.from_numpy(table)
