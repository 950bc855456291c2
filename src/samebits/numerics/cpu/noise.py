"""Gumbel noise of the sampling clause: Philox4x32-10 words, and their way to a float32 (numba).

Words are kept in 64 bits here, because the high half of a 32 by 32 bit product is wanted: so loops vectorise.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from samebits.numerics import philox
from samebits.numerics.cpu.kernel import COMPILE_OPTIONS, inlined
from samebits.numerics.cpu.math import log1p32, log32

ROUNDS = philox.ROUNDS
MULTIPLIER_0 = np.uint64(philox.MULTIPLIER_0)
MULTIPLIER_1 = np.uint64(philox.MULTIPLIER_1)
WEYL_0 = np.uint64(philox.WEYL_0)
WEYL_1 = np.uint64(philox.WEYL_1)
WORD_MASK = np.uint64(philox.WORD_MASK)
HIGH = np.uint64(32)

NOISE_BOUND = np.float32(23.0)
"""No noise is larger: word 0 gives 33 ln 2 = 22.87."""
LARGEST_BELOW_ONE = np.float32(1.0 - 2.0**-24)
HALF = np.float32(0.5)
TWO_16 = np.float32(65536.0)
TWO_MINUS_32 = np.float32(2.0**-32)


@njit(inline="always", **COMPILE_OPTIONS)
def philox_words(c0, c1, c2, c3, k0, k1):
    """The four words of one counter under one key; every value is a uint64 below 2**32."""
    for _ in range(ROUNDS):
        product_0 = MULTIPLIER_0 * c0
        product_1 = MULTIPLIER_1 * c2
        c0, c2 = (product_1 >> HIGH) ^ c1 ^ k0, (product_0 >> HIGH) ^ c3 ^ k1
        c1, c3 = product_1 & WORD_MASK, product_0 & WORD_MASK
        k0 = (k0 + WEYL_0) & WORD_MASK
        k1 = (k1 + WEYL_1) & WORD_MASK
    return c0, c1, c2, c3


@inlined
def words_of_range(first_id, seed, position, sample_index, stream, words):
    """Fill `words` uint32 [n] with the words of the ids first_id .. first_id + n - 1.

    `first_id` and n are multiples of 4; the caller ignores what lies beyond its vocabulary. Of `seed`, an
    int64, the bit pattern counts.
    """
    low, high = np.uint64(seed) & WORD_MASK, np.uint64(seed) >> HIGH
    first = first_id // 4
    for quad in range(words.shape[0] // 4):
        w0, w1, w2, w3 = philox_words(
            np.uint64(first + quad),
            np.uint64(position),
            np.uint64(sample_index),
            np.uint64(stream),
            low,
            high,
        )
        words[4 * quad] = w0
        words[4 * quad + 1] = w1
        words[4 * quad + 2] = w2
        words[4 * quad + 3] = w3


@inlined
def words_of_ids(ids, seed, position, sample_index, stream, words):
    """Fill `words` uint32 [n] with the words of the token ids `ids` int32 [n]."""
    low, high = np.uint64(seed) & WORD_MASK, np.uint64(seed) >> HIGH
    for i in range(words.shape[0]):
        token_id = np.uint64(ids[i])
        w0, w1, w2, w3 = philox_words(
            token_id >> np.uint64(2),
            np.uint64(position),
            np.uint64(sample_index),
            np.uint64(stream),
            low,
            high,
        )
        # Masks rather than branches, so that the loop vectorises.
        odd = np.uint64(0) - (token_id & np.uint64(1))
        high_pair = np.uint64(0) - ((token_id >> np.uint64(1)) & np.uint64(1))
        lower = w0 ^ ((w0 ^ w1) & odd)
        upper = w2 ^ ((w2 ^ w3) & odd)
        words[i] = lower ^ ((lower ^ upper) & high_pair)


@inlined
def noise_of_words(words, noise):
    """Fill `noise` float32 [n] from `words` uint32 [n].

    word + 1/2 is rounded to float32 once: both addends of the sum are exact.
    """
    for i in range(words.shape[0]):
        upper = np.float32(np.int32(words[i] >> np.uint32(16))) * TWO_16
        lower = np.float32(np.int32(words[i] & np.uint32(0xFFFF))) + HALF
        v = (upper + lower) * TWO_MINUS_32
        v = v if v < LARGEST_BELOW_ONE else LARGEST_BELOW_ONE
        noise[i] = -log32(-log1p32(-v))
