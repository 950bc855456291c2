"""Probe of the sampling clauses: fixed rows that between them use every filter, and what is reported of them."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from samebits.numerics.adversarial import wide_rows
from samebits.numerics.batch import SamplingBatch, TokenLists
from samebits.numerics.operators import Operators

VOCABULARY = 3000
ROWS = 64
FILTERS = 8
"""Row r uses filter r mod 8; see `probe_batch`."""


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


def probe_sampling(operators: Operators) -> list[Tensor]:
    """What the sampling stage gives for the fixed rows: tokens, faults, processed and raw logprobs, top tokens."""
    logits = wide_rows(51, ROWS, VOCABULARY, 2).to(operators.device)
    result = operators.sample(logits, probe_batch(operators.device), True)
    assert result.processed_logprobs is not None
    ids, values = operators.top_tokens(logits, 20)
    rows = torch.arange(ROWS, device=operators.device).repeat_interleave(20)
    logprobs = operators.token_logprobs(logits, operators.log_sum_exp(logits), rows, ids.flatten())
    return [result.token_ids, result.faults, result.processed_logprobs, ids, values, logprobs]
