"""What a step needs of a model: a forward over a ragged batch, and logits of chosen rows.

The engine is written against this, so that a model, a null model (for the cost of scheduling) or a fake one
(for simulated schedules) run under the same loop.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import Operators


class Runner(Protocol):
    """A model with its KV storage."""

    @property
    def operators(self) -> Operators: ...

    @property
    def vocabulary(self) -> int: ...

    def forward(self, batch: RaggedBatch) -> Tensor:
        """Hidden states act [rows, hidden] of the wanted rows; stores all rows' keys and values; sets
        `batch.row_faults`."""

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [rows, vocabulary] of final hidden states."""
