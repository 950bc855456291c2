"""A model without a model: logits are a hash of exactly the tokens and positions that a row can see.

It reads them through the page table, as attention would, from slots that it wrote itself, as a KV store would.
So any mix-up of pages, slots, positions or requests changes the output, at the cost of microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import Operators

_MULTIPLIER = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class FakeRunner:
    """Implements `engine.runner.Runner`. `operators` serve the sampling stage only."""

    operators: Operators
    vocabulary: int
    pages: int
    page_tokens: int
    _store: np.ndarray = field(init=False, repr=False)
    """uint64 [pages * page_tokens]: hash of (token, position) of the slot's owner"""

    def __post_init__(self) -> None:
        store = np.full(self.pages * self.page_tokens, 0xDEAD, dtype=np.uint64)
        object.__setattr__(self, "_store", store)

    def forward(self, batch: RaggedBatch) -> Tensor:
        """Hidden "states" int64 [rows, 1] of the wanted rows: the hash of what each row sees."""
        positions = batch.positions.numpy()
        tokens = batch.token_ids.numpy().astype(np.uint64)
        self._store[batch.slots.numpy()] = _mix(tokens * np.uint64(1_000_003) + positions.astype(np.uint64))
        starts = batch.query_start.tolist()
        offsets = np.arange(self.page_tokens)
        table = batch.page_table.numpy()
        weights = _mixed_numbers(int(positions.max()) + 1)
        hidden = np.empty(batch.rows, dtype=np.uint64)
        for request in range(batch.requests):
            first, end = starts[request], starts[request + 1]
            seen = int(positions[end - 1]) + 1
            pages = table[request, : -(-seen // self.page_tokens)]
            slots = (pages[:, None] * self.page_tokens + offsets).reshape(-1)[:seen]
            # Position-weighted, so that two swapped slots change the sum.
            weighted = self._store[slots] * weights[:seen]
            hidden[first:end] = np.cumsum(weighted, dtype=np.uint64)[positions[first:end]]
        states = torch.from_numpy(hidden.view(np.int64)[:, None])
        return states if batch.wanted is None else states[batch.wanted]

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [rows, vocabulary] in [-8, 8), a hash of (row's hash, token id)."""
        rows = np.ascontiguousarray(hidden.numpy()[:, 0]).view(np.uint64)
        bits = _mix(rows[:, None] ^ _mixed_ids(self.vocabulary)[None, :]) >> np.uint64(40)
        return torch.from_numpy((bits.astype(np.float32) - np.float32(2**23)) * np.float32(2.0**-20))


@cache
def _mixed_numbers(count: int) -> np.ndarray:
    return _mix(np.arange(count, dtype=np.uint64))


@cache
def _mixed_ids(vocabulary: int) -> np.ndarray:
    return _mix(np.arange(vocabulary, dtype=np.uint64) * np.uint64(_MULTIPLIER))


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser."""
    values = values + np.uint64(_MULTIPLIER)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX[1])
    return values ^ (values >> np.uint64(31))
