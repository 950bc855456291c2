"""Philox4x32-10 (Salmon et al., SC 2011) over plain integers: the reference of the sampler's noise words.

The sampler draws, for one token id at one position of one sample, word `id mod 4` of
Philox(key = the two halves of the seed, counter = (id div 4, position, sample index, stream)).
A word depends on nothing else: not on the vocabulary's order, the row, the batch or earlier draws.
"""

from __future__ import annotations

WORD_MASK = 0xFFFF_FFFF
ROUNDS = 10
MULTIPLIER_0 = 0xD251_1F53
MULTIPLIER_1 = 0xCD9E_8D57
WEYL_0 = 0x9E37_79B9
WEYL_1 = 0xBB67_AE85
STREAM_SAMPLE = 0
"""The fourth counter word of token sampling; other uses of a seed take other streams."""

Words = tuple[int, int, int, int]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Four random 32-bit words of one 128-bit counter under one 64-bit key. All words lie in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product_0 = MULTIPLIER_0 * c0
        product_1 = MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> 32) ^ c1 ^ k0,
            product_1 & WORD_MASK,
            (product_0 >> 32) ^ c3 ^ k1,
            product_0 & WORD_MASK,
        )
        k0 = (k0 + WEYL_0) & WORD_MASK
        k1 = (k1 + WEYL_1) & WORD_MASK
    return c0, c1, c2, c3


def seed_key(seed: int) -> tuple[int, int]:
    """(low word, high word) of a 64-bit seed, signed or unsigned: -1 and 2^64 - 1 are one seed."""
    return seed & WORD_MASK, (seed >> 32) & WORD_MASK


def token_word(
    seed: int, position: int, sample_index: int, token_id: int, stream: int = STREAM_SAMPLE
) -> int:
    """The noise word of one token id. `position` is the absolute position of the token being sampled."""
    words = philox4x32((token_id // 4, position, sample_index, stream), seed_key(seed))
    return words[token_id % 4]
