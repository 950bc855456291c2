"""Philox4x32-10 and the noise made of it, against published answers and the committed vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sampling_reference import exact_noise, signed

from samebits.numerics.cpu.noise import NOISE_BOUND, noise_of_words, words_of_ids, words_of_range
from samebits.numerics.philox import philox4x32, seed_key, token_word

VECTORS = json.loads((Path(__file__).parent / "vectors" / "sampling_noise.json").read_text())
SEEDS = (0, 1, -1, 1 << 31, 1 << 63, (1 << 64) - 1, 42)


def noise_bits(words: np.ndarray) -> np.ndarray:
    noise = np.empty(words.shape[0], np.float32)
    noise_of_words(words, noise)
    return noise.view(np.uint32)


@pytest.mark.parametrize("vector", VECTORS["philox4x32_10"])
def test_published_known_answers(vector: dict) -> None:
    counter, key, expected = (
        [int(word, 16) for word in vector[name].split()] for name in ("counter", "key", "words")
    )
    assert philox4x32(tuple(counter), tuple(key)) == tuple(expected)


def test_nine_rounds_are_another_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samebits.numerics.philox.ROUNDS", 9)
    assert philox4x32((0, 0, 0, 0), (0, 0))[0] != 0x6627E8D5


@pytest.mark.parametrize("vector", VECTORS["tokens"])
def test_committed_token_vectors(vector: dict) -> None:
    seed, position, sample = int(vector["seed"]), vector["position"], vector["sample_index"]
    ids, words = vector["token_ids"], [int(word, 16) for word in vector["words"]]
    assert [token_word(seed, position, sample, i) for i in ids] == words
    made = np.empty(len(ids), np.uint32)
    words_of_ids(np.array(ids, np.int32), signed(seed), position, sample, 0, made)
    assert made.tolist() == words
    assert noise_bits(made).tolist() == [int(bits, 16) for bits in vector["noise"]]


@pytest.mark.parametrize("seed", SEEDS)
def test_kernel_words_equal_the_scalar_reference(seed: int) -> None:
    ranged, listed = np.empty(64, np.uint32), np.empty(64, np.uint32)
    words_of_range(4096, signed(seed), 123, 5, 0, ranged)
    words_of_ids(np.arange(4096, 4160, dtype=np.int32), signed(seed), 123, 5, 0, listed)
    expected = [token_word(seed, 123, 5, token_id) for token_id in range(4096, 4160)]
    assert ranged.tolist() == expected
    assert listed.tolist() == expected


def test_committed_vectors_of_forced_words() -> None:
    words = np.array([int(vector["word"], 16) for vector in VECTORS["words"]], np.uint32)
    assert words[0] == 0 and words[-1] == 0xFFFFFFFF
    assert noise_bits(words).tolist() == [int(vector["noise"], 16) for vector in VECTORS["words"]]


def test_every_part_of_the_counter_and_key_counts() -> None:
    base = dict(seed=7, position=100, sample_index=1, token_id=40, stream=0)
    words = {token_word(**base)}
    for name in base:
        words.add(token_word(**{**base, name: base[name] + 1}))
    words.add(token_word(**{**base, "seed": base["seed"] + (1 << 32)}))
    assert len(words) == len(base) + 2


def test_signed_and_unsigned_seeds_are_one() -> None:
    assert seed_key(-1) == seed_key((1 << 64) - 1) == (0xFFFFFFFF, 0xFFFFFFFF)
    assert seed_key(-(1 << 63)) == seed_key(1 << 63) == (0, 0x80000000)


def test_noise_of_forced_and_random_words_is_finite_bounded_and_accurate() -> None:
    border = [0, 1, 2, 3, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFE7F, 0xFFFFFEFF, 0xFFFFFF00]
    border += [0xFFFFFF7F, 0xFFFFFF80, 0xFFFFFFFE, 0xFFFFFFFF, 0x01FFFFFF, 0x01000001, 0x01000003]
    random = np.random.default_rng(1).integers(0, 1 << 32, 20_000, dtype=np.uint32)
    words = np.concatenate([np.array(border, np.uint32), random])
    noise = noise_bits(words).view(np.float32)
    expected = np.array([exact_noise(int(word)) for word in words])
    assert np.isfinite(noise).all()
    assert noise.max() < NOISE_BOUND
    # Two logarithms of under one unit in the last place each; near noise 0 the first one's error is absolute.
    assert (np.abs(noise - expected) <= 4e-7 * np.maximum(1.0, np.abs(expected))).all()


def test_an_unclamped_word_would_be_infinite() -> None:
    assert np.float32(0xFFFFFFFF + 0.5) * np.float32(2.0**-32) == 1.0
    assert noise_bits(np.array([0xFFFFFFFF], np.uint32)).view(np.float32)[0] < -2.8
