"""The runner of a model that is cut over ranks; this is rank 0's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samebits.engine.rank_worker import Logits, forward_order, join_faults
from samebits.engine.ranks import RankProcesses
from samebits.engine.runner import Runner
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import Operators


@dataclass(frozen=True)
class ParallelRunner:
    """Tells the other ranks what `shard`, the runner of rank 0's part, does, and does it with them.

    Raises `RanksLostError` when a rank fails, rank 0 among them.
    """

    shard: Runner
    ranks: RankProcesses

    @property
    def operators(self) -> Operators:
        return self.shard.operators

    @property
    def vocabulary(self) -> int:
        return self.shard.vocabulary

    def forward(self, batch: RaggedBatch) -> Tensor:
        self.ranks.tell(forward_order(batch))
        return self.ranks.explained(lambda: self._forward(batch))

    def _forward(self, batch: RaggedBatch) -> Tensor:
        hidden = self.shard.forward(batch)
        join_faults(self.ranks.group, batch.row_faults)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        self.ranks.tell(Logits(hidden.numpy()))
        return self.ranks.explained(lambda: self.shard.logits(hidden))
