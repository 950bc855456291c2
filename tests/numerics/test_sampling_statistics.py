"""The sampler draws from the softmax: chi-square with fixed seeds, so that each verdict is always the same.

Critical values are those of significance 0.001; a wrong distribution exceeds them many times over.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sampling_reference import Row, make_batch

from samebits.numerics.cpu.pool import Pool
from samebits.numerics.cpu.sampling import sample

POOL = Pool(1)
DRAWS = 20_000
# Degrees of freedom -> the value that chi-square exceeds once in 1,000.
CRITICAL = {3: 16.27, 7: 24.32, 9: 27.88, 15: 37.70}
LOGITS = np.array([0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 1.5, -2.0], np.float32)


def draw(logits: np.ndarray, row: Row, vary: str, draws: int = DRAWS) -> np.ndarray:
    """Token ids with one field of the row running from 0 to draws - 1. int64 [draws]."""
    batch = make_batch([row], len(logits))
    columns = {
        name: value.repeat(draws) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
    }
    columns[vary] = torch.arange(draws, dtype=torch.int64)
    empty = replace(batch.prompt, start=torch.zeros(draws + 1, dtype=torch.int64))
    values = replace(empty, values=torch.empty(0))
    batch = replace(batch, **columns, prompt=empty, output=empty, forbidden=empty, bias=values)
    return sample(POOL, torch.from_numpy(logits).repeat(draws, 1), batch).token_ids.numpy()


def softmax(scaled: np.ndarray) -> np.ndarray:
    weights = np.exp(scaled.astype(np.float64) - scaled.max())
    return weights / weights.sum()


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def statistic(tokens: np.ndarray, probabilities: np.ndarray) -> float:
    counts = np.bincount(tokens, minlength=len(probabilities))
    return chi_square(counts, len(tokens) * probabilities)


@pytest.mark.parametrize("vary", ["position", "seed", "sample_index"])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
def test_draws_follow_the_softmax(vary: str, temperature: float) -> None:
    tokens = draw(LOGITS, Row(temperature=temperature, seed=7), vary)
    assert statistic(tokens, softmax(LOGITS / temperature)) < CRITICAL[7]
    assert statistic(tokens, softmax(LOGITS / (temperature * 1.25))) > 5 * CRITICAL[7]


def test_filtered_draws_follow_the_renormalised_softmax() -> None:
    tokens = draw(LOGITS, Row(top_k=4, seed=8), "position")
    kept = np.sort(np.argsort(-LOGITS, kind="stable")[:4])
    assert set(tokens) == set(kept.tolist())
    assert statistic(np.searchsorted(kept, tokens), softmax(LOGITS[kept])) < CRITICAL[3]


def test_neighbouring_positions_are_independent() -> None:
    """Pairs of tokens at positions p and p + 1 over four equal logits: 16 equal cells."""
    tokens = draw(np.zeros(4, np.float32), Row(seed=9), "position")
    pairs = tokens[0::2] * 4 + tokens[1::2]
    assert statistic(pairs, np.full(16, 1 / 16)) < CRITICAL[15]
    assert statistic(tokens * 5, np.full(16, 1 / 16)) > 100 * CRITICAL[15]


def test_a_large_flat_vocabulary_is_drawn_evenly() -> None:
    """Ten equal ranges of 5,000 equal logits: chunks, blocks and lanes show no preference."""
    tokens = draw(np.zeros(5000, np.float32), Row(seed=10), "position", 4000)
    assert statistic(tokens // 500, np.full(10, 0.1)) < CRITICAL[9]
    lanes = statistic(tokens % 4, np.full(4, 0.25))
    assert lanes < CRITICAL[3]
