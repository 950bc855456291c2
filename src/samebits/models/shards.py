"""How a model is cut over tensor-parallel ranks: heads, MLP columns and vocabulary rows, each by rank order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samebits.errors import UnsupportedModelError
from samebits.models.spec import ModelSpec
from samebits.numerics.operators import HeadLayout
from samebits.numerics.vocabulary import shard_rows


@dataclass(frozen=True)
class ModelShard:
    """The share of one rank. Rank 0 of 1 holds the whole model."""

    rank: int = 0
    size: int = 1

    def check(self, spec: ModelSpec) -> None:
        """Raises `UnsupportedModelError` saying what of the model cannot be divided."""
        heads, size = spec.heads, self.size
        reasons = []
        if heads.query_heads % size:
            reasons.append(f"its {heads.query_heads} query heads")
        if heads.kv_heads % size and size % heads.kv_heads:
            reasons.append(f"its {heads.kv_heads} key-value heads, which can neither be split nor repeated")
        if spec.intermediate % size:
            reasons.append(f"its MLP width of {spec.intermediate}")
        if reasons:
            raise UnsupportedModelError(
                f"--tensor-parallel {size} does not divide this model: {', '.join(reasons)}"
            )

    def spec(self, spec: ModelSpec) -> ModelSpec:
        """The spec with the heads of this rank, for the forward; everything else is the whole model's."""
        heads = spec.heads
        own = HeadLayout(heads.query_heads // self.size, max(1, heads.kv_heads // self.size), heads.head_dim)
        return replace(spec, heads=own)

    def rows(self, tensor: Tensor) -> Tensor:
        """This rank's outputs of a column-parallel weight [out, in] or bias [out]."""
        return self._part(tensor, 0)

    def kv_rows(self, tensor: Tensor, heads: HeadLayout) -> Tensor:
        """The same of a key or value weight; with fewer heads than ranks, neighbouring ranks hold the same head.
        `heads` is the whole model's."""
        if self.size <= heads.kv_heads:
            return self._part(tensor, 0)
        head = self.rank * heads.kv_heads // self.size
        return tensor[head * heads.head_dim : (head + 1) * heads.head_dim]

    def inputs(self, tensor: Tensor) -> Tensor:
        """This rank's inputs of a row-parallel weight [out, in]."""
        return self._part(tensor, 1)

    def vocabulary(self, tensor: Tensor) -> Tensor:
        """This rank's rows of an embedding or output matrix [vocabulary, hidden], zeros beyond its end."""
        if self.size == 1:
            return tensor
        rows = shard_rows(tensor.shape[0], self.size)
        own = tensor[self.rank * rows : (self.rank + 1) * rows]
        return torch.cat([own, own.new_zeros((rows - own.shape[0], tensor.shape[1]))])

    def _part(self, tensor: Tensor, dimension: int) -> Tensor:
        return tensor.chunk(self.size, dimension)[self.rank] if self.size > 1 else tensor


WHOLE = ModelShard()
