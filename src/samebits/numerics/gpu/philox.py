"""Noise of the sampling clause in Triton: Philox4x32-10 words, and their way to a float32."""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics import philox
from samebits.numerics.gpu.arithmetic import bits_float, log, log1p

ROUNDS = tl.constexpr(philox.ROUNDS)
MULTIPLIER_0 = tl.constexpr(philox.MULTIPLIER_0)
MULTIPLIER_1 = tl.constexpr(philox.MULTIPLIER_1)
WEYL_0 = tl.constexpr(philox.WEYL_0)
WEYL_1 = tl.constexpr(philox.WEYL_1)
LARGEST_BELOW_ONE = tl.constexpr(1.0 - 2.0**-24)
TWO_MINUS_32 = tl.constexpr(2.0**-32)
MANTISSA_UNIT = tl.constexpr(0x4B000000)
"""Bits of 2**23, whose last mantissa bit is worth 1."""
LN_2 = tl.constexpr(0.6931471805599453)
ROUGHNESS = tl.constexpr(0.0005)
"""Bound of the error of the rough noise; its largest over all words was measured to be below a quarter of it."""


@triton.jit
def philox_words(c0, c1, c2, c3, k0, k1):
    """The four words of one counter under one key; all uint32."""
    multiplier_0 = tl.full(c0.shape, MULTIPLIER_0, tl.uint32)
    multiplier_1 = tl.full(c0.shape, MULTIPLIER_1, tl.uint32)
    weyl_0 = tl.full(k0.shape, WEYL_0, tl.uint32)
    weyl_1 = tl.full(k1.shape, WEYL_1, tl.uint32)
    for _ in tl.static_range(ROUNDS):
        previous_0, previous_2 = c0, c2
        c0 = tl.umulhi(multiplier_1, previous_2) ^ c1 ^ k0
        c2 = tl.umulhi(multiplier_0, previous_0) ^ c3 ^ k1
        c1 = multiplier_1 * previous_2
        c3 = multiplier_0 * previous_0
        k0 += weyl_0
        k1 += weyl_1
    return c0, c1, c2, c3


@triton.jit
def uniform_of_words(words):
    """v of the clause. word + 1/2 is rounded once: halves of a word become floats in the mantissa of 2**23, and all but
    the sum of the two is exact."""
    upper = bits_float(((words >> 16) | MANTISSA_UNIT).to(tl.int32, bitcast=True)) - 8388608.0
    lower = bits_float(((words & 0xFFFF) | MANTISSA_UNIT).to(tl.int32, bitcast=True)) - 8388607.5
    v = tl.fma(upper, 65536.0, lower) * TWO_MINUS_32
    return tl.where(v < LARGEST_BELOW_ONE, v, LARGEST_BELOW_ONE)


@triton.jit
def noise_of_words(words):
    """Gumbel noise float32 of uint32 words."""
    return -log(-log1p(-uniform_of_words(words)))


@triton.jit
def rough_log2(x, NVIDIA: tl.constexpr):
    """The device's own binary logarithm of a normal float32; on NVIDIA's GPUs one instruction, off by 2**-22 near 1
    and by a factor of 1 + 2**-22 elsewhere."""
    if NVIDIA:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.log2(x)


@triton.jit
def rough_noise_of_words(words, NVIDIA: tl.constexpr):
    """The noise to within ROUGHNESS, by the device's own logarithm: for finding who may win, never for a result."""
    v = uniform_of_words(words)
    e = tl.where(v < 0.01, v + 0.5 * v * v, -LN_2 * rough_log2(1.0 - v, NVIDIA))
    return -LN_2 * rough_log2(e, NVIDIA)


@triton.jit
def words_of_ids(ids, seed, position, sample_index):
    """uint32 words of the token ids int32 [n], each by itself; the other arguments are int64 scalars."""
    zero = tl.zeros(ids.shape, tl.uint32)
    w0, w1, w2, w3 = philox_words(
        (ids >> 2).to(tl.uint32),
        zero + position.to(tl.uint32),
        zero + sample_index.to(tl.uint32),
        zero,
        zero + seed.to(tl.uint32),
        zero + (seed >> 32).to(tl.uint32),
    )
    low = tl.where((ids & 1) == 0, w0, w1)
    high = tl.where((ids & 1) == 0, w2, w3)
    return tl.where((ids & 2) == 0, low, high)


@triton.jit
def words_of_range(first, COUNT: tl.constexpr, seed, position, sample_index):
    """uint32 words [COUNT] of the ids first .. first + COUNT - 1; both are multiples of 4."""
    quads = (first // 4) + tl.arange(0, COUNT // 4)
    zero = tl.zeros((COUNT // 4,), tl.uint32)
    w0, w1, w2, w3 = philox_words(
        quads.to(tl.uint32),
        zero + position.to(tl.uint32),
        zero + sample_index.to(tl.uint32),
        zero,
        zero + seed.to(tl.uint32),
        zero + (seed >> 32).to(tl.uint32),
    )
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (COUNT,))
