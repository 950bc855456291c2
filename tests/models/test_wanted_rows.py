"""The last layer works for the wanted rows alone, and gives them the bits that they have among all rows."""

from __future__ import annotations

from dataclasses import replace

import torch

from samebits.config import ModelConfig
from samebits.models.decoder import forward
from samebits.models.load import load_model
from samebits.numerics.cpu.operators import CpuOperators

from .checkpoints import PAGE_TOKENS, ragged_batch

CHUNKS = [(0, [5, 6, 7, 8, 9]), (0, [11]), (0, list(range(20, 60)))]


def test_wanted_rows_have_the_bits_of_all_rows() -> None:
    operators = CpuOperators(threads=1)
    config = ModelConfig(model="tiny", load_format="dummy", context_length=1024)
    model = load_model(config, operators)
    batch = ragged_batch(CHUNKS, pages_each=60 // PAGE_TOKENS + 1)
    pages = batch.page_table.numel()

    def run(wanted: list[int] | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        kv = operators.allocate_kv(model.spec.layers, pages, PAGE_TOKENS, model.spec.heads)
        rows = None if wanted is None else torch.tensor(wanted)
        hidden = forward(model.spec, model.weights, operators, replace(batch, wanted=rows), kv, model.rope)
        return hidden, [side for layer in kv for side in (layer.keys, layer.values)]

    everything, stored = run(None)
    for wanted in ([4, 5, 45], [45, 0, 0], [17]):
        hidden, kept = run(wanted)
        assert torch.equal(hidden.view(torch.uint8), everything[wanted].view(torch.uint8))
        assert all(torch.equal(one, other) for one, other in zip(kept, stored, strict=True))
    # The inverse: another row has other bits.
    assert not torch.equal(run([16])[0], everything[[17]])
