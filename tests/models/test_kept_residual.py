"""Operators may keep of a residual what only their next call reads, and reuse the buffers of results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from samebits.config import ModelConfig
from samebits.models.decoder import forward
from samebits.models.load import load_model
from samebits.numerics.cpu.operators import CpuOperators

from .checkpoints import PAGE_TOKENS, ragged_batch

CHUNKS = [(0, [5, 6, 7, 8, 9]), (0, [11]), (0, list(range(20, 60)))]


class KeepingOperators:
    """As the operators `inner`, but what they may keep to themselves is void for everybody else. `greedy` ones keep
    more: the sums that are to be whole, too."""

    def __init__(self, inner: CpuOperators, greedy: bool = False) -> None:
        self._inner, self._greedy = inner, greedy
        self._residual: Tensor | None = None
        self._lent: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def row_linear_add_norm(
        self, x: Tensor, weight: Any, residual: Tensor, norm_weight: Tensor, eps: float, whole: bool = True
    ) -> tuple[Tensor, Tensor]:
        if self._residual is not None:
            assert self._residual.shape == residual.shape, "the next call is for as many rows"
            residual = self._residual
        normed, total = self._inner.row_linear_add_norm(x, weight, residual, norm_weight, eps)
        self.reclaim(1)
        self._lent.append(total if whole else normed)
        if whole and not self._greedy:
            self._residual = None
            return normed, total
        self._residual = total
        return normed, torch.full_like(total, torch.nan)

    def reclaim(self, kept: int) -> None:
        """Void all results that were lent but the last `kept`."""
        while len(self._lent) > kept:
            self._lent.pop(0).fill_(torch.nan)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("wanted", [None, [4, 5, 45]])
def test_nobody_reads_what_operators_keep(layers: int, wanted: list[int] | None) -> None:
    operators = CpuOperators(threads=1)
    config = ModelConfig(model="tiny", load_format="dummy", context_length=1024)
    model = load_model(config, operators)
    weights = replace(model.weights, layers=model.weights.layers[:layers])
    batch = ragged_batch(CHUNKS, pages_each=60 // PAGE_TOKENS + 1)
    rows = None if wanted is None else torch.tensor(wanted)

    def run(used: Any) -> Tensor:
        kv = operators.allocate_kv(layers, batch.page_table.numel(), PAGE_TOKENS, model.spec.heads)
        return forward(model.spec, weights, used, replace(batch, wanted=rows), kv, model.rope)

    expected = run(operators)
    keeping = KeepingOperators(operators)
    found = run(keeping)
    keeping.reclaim(0)
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    if layers > 1 and wanted is not None:
        # The inverse: rows are taken of what the last layer begins with.
        with pytest.raises(AssertionError, match="as many rows"):
            run(KeepingOperators(operators, greedy=True))
