"""Probe of the sampling clauses: fixed rows that between them use every filter, what is reported of them, and rows
whose draw hangs on the last bit of the noise."""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from samebits.numerics.adversarial import logit_rows, pair_rows, subnormal_floats
from samebits.numerics.batch import SamplingBatch, TokenLists
from samebits.numerics.operators import Operators
from samebits.numerics.philox import STREAM_SAMPLE, philox4x32, seed_key

VOCABULARY = 3000
ROWS = 64
FILTERS = 8
"""Row r uses filter r mod 8; see `probe_batch`."""
TIED_ROWS, TIED_VOCABULARY = 16, 128
PAIRS = 1024
TIED_SEED = 0x5A3EB175


def probe_batch(device: torch.device) -> SamplingBatch:
    """Rows that differ in seed, position, sample index and temperature, each with one filter (or none)."""
    row = torch.arange(ROWS, device=device)

    def where(index: int, value: float, other: float, dtype: torch.dtype = torch.float32) -> Tensor:
        values = [value if r % FILTERS == index else other for r in range(ROWS)]
        return torch.tensor(values, dtype=dtype, device=device)

    def listed(index: int, step: int, values: bool = False) -> TokenLists:
        """Five ids, one of them twice, in the rows of one kind."""
        lists = [[(37 * r + step * i) % VOCABULARY for i in (0, 1, 2, 2, 3)] for r in range(ROWS)]
        lists = [ids if r % FILTERS == index else [] for r, ids in enumerate(lists)]
        start = torch.tensor([0, *accumulate(len(ids) for ids in lists)], device=device)
        ids = torch.tensor([i for row_ids in lists for i in row_ids], device=device)
        return TokenLists(start, ids, (ids % 7).float() - 3.0 if values else None)

    return SamplingBatch(
        temperature=where(1, 0.0, 0.75),
        top_k=where(2, 40, 0, torch.int32),
        top_p=where(3, 0.9, 1.0),
        min_p=where(4, 0.05, 0.0),
        presence_penalty=where(5, 0.5, 0.0),
        frequency_penalty=where(5, 0.25, 0.0),
        repetition_penalty=where(5, 1.3, 1.0),
        seed=row * 0x1234567 - 5,
        position=row * 131,
        sample_index=row % 3,
        prompt=listed(5, 307),
        output=listed(5, 501),
        bias=listed(6, 501, True),
        forbidden=listed(7, 501),
    )


def probe_logits() -> Tensor:
    """The rows that `probe_batch` is about."""
    return logit_rows(51, ROWS, VOCABULARY)


def mirrored_noise(word: int) -> float:
    """The float32 next to minus the noise of a word, from decimal logarithms: the same on every machine.

    -100 where the noise is not near 0.
    """
    v = float(np.float32(word + 0.5)) * 2.0**-32
    if not 0.55 < v < 0.72:
        return -100.0
    with localcontext(prec=20):
        return float(np.float32(float((-(1 - Decimal(v)).ln()).ln())))


def tied_logits() -> Tensor:
    """Rows in which the score, logit + noise, of many tokens is the same but for roundings, which decide.

    The last row is drawn with top-k 1 and holds two tokens at a subnormal distance, the better one with the
    higher id: they tie where subnormals are flushed.
    """
    counters = [
        [(quad, row, 0, STREAM_SAMPLE) for quad in range(TIED_VOCABULARY // 4)] for row in range(TIED_ROWS)
    ]
    words = [[philox4x32(counter, seed_key(TIED_SEED)) for counter in row] for row in counters]
    logits = torch.tensor([[mirrored_noise(word) for quad in row for word in quad] for row in words])
    logits[-1] = -100.0
    logits[-1, 7] = 0.0
    logits[-1, 3] = torch.from_numpy(-np.abs(subnormal_floats(52, (1,))))[0]
    return logits


def plain_batch(seed: int, rows: int, device: torch.device) -> SamplingBatch:
    """Rows at temperature 1 without a filter, at positions 0, 1, 2 and so on."""

    def full(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((rows,), value, dtype=dtype, device=device)

    nothing = TokenLists(full(0, torch.int64).new_zeros(rows + 1), full(0, torch.int64)[:0])
    return SamplingBatch(
        temperature=full(1.0),
        top_k=full(0, torch.int32),
        top_p=full(1.0),
        min_p=full(0.0),
        presence_penalty=full(0.0),
        frequency_penalty=full(0.0),
        repetition_penalty=full(1.0),
        seed=full(seed, torch.int64),
        position=torch.arange(rows, device=device),
        sample_index=full(0, torch.int64),
        prompt=nothing,
        output=nothing,
        bias=nothing,
        forbidden=nothing,
    )


def tied_batch(device: torch.device) -> SamplingBatch:
    """What the rows of `tied_logits` ask."""
    batch = plain_batch(TIED_SEED, TIED_ROWS, device)
    batch.top_k[-1] = 1
    return batch


def probe_sampling(operators: Operators) -> list[Tensor]:
    """What the sampling stage gives for the fixed rows: tokens, faults, processed and raw logprobs, top tokens."""
    device = operators.device
    logits = probe_logits().to(device)
    result = operators.sample(logits, probe_batch(device), True)
    assert result.processed_logprobs is not None
    ids, values = operators.top_tokens(logits, 20)
    rows = torch.arange(ROWS, device=device).repeat_interleave(20)
    logprobs = operators.token_logprobs(logits, operators.log_sum_exp(logits), rows, ids.flatten())
    tied = operators.sample(tied_logits().to(device), tied_batch(device))
    pairs = operators.sample(pair_rows(53, PAIRS, 8).to(device), plain_batch(0, PAIRS, device), True)
    assert pairs.processed_logprobs is not None
    drawn = [result.token_ids, result.faults, result.processed_logprobs, ids, values, logprobs]
    return [*drawn, tied.token_ids, pairs.processed_logprobs]
