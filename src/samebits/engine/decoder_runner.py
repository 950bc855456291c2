"""The runner of a real model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samebits.models import decoder
from samebits.models.decoder import DecoderWeights
from samebits.models.spec import ModelSpec
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import KvLayer, Operators


@dataclass(frozen=True)
class DecoderRunner:
    """A decoder-only model."""

    spec: ModelSpec
    weights: DecoderWeights
    operators: Operators
    rope: Tensor
    kv: tuple[KvLayer, ...]

    @property
    def vocabulary(self) -> int:
        return self.spec.vocabulary

    def forward(self, batch: RaggedBatch) -> Tensor:
        return decoder.forward(self.spec, self.weights, self.operators, batch, self.kv, self.rope)

    def logits(self, hidden: Tensor) -> Tensor:
        return decoder.logits(self.spec, self.weights, self.operators, hidden)
