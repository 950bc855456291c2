"""The probe of the sampling stage sees every filter, and its rows are ordinary rows."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from samebits.numerics.batch import SamplingBatch, TokenLists
from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.probe_sampling import (
    FILTERS,
    ROWS,
    TIED_ROWS,
    VOCABULARY,
    probe_batch,
    probe_logits,
    probe_sampling,
)

OPERATORS = CpuOperators(threads=1)
NEUTRAL = {"temperature": 0.75, "top_p": 1.0, "repetition_penalty": 1.0}


def sampled_bits(batch: SamplingBatch) -> list[bytes]:
    result = OPERATORS.sample(probe_logits(), batch, True)
    assert result.processed_logprobs is not None
    return [row.numpy().tobytes() for row in result.processed_logprobs]


def test_probe_draws_real_tokens() -> None:
    token_ids, faults, processed, ids, _, logprobs, tied, _ = probe_sampling(OPERATORS)
    assert not faults.any()
    assert len(set(token_ids.tolist())) > ROWS // 2
    assert processed.shape == (ROWS, VOCABULARY) and ids.shape == (ROWS, 20)
    assert torch.isfinite(logprobs).all()
    assert tied[-1] == 7 and len(set(tied.tolist())) > TIED_ROWS // 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("temperature", 1),
        ("top_k", 2),
        ("top_p", 3),
        ("min_p", 4),
        ("presence_penalty", 5),
        ("frequency_penalty", 5),
        ("repetition_penalty", 5),
        ("bias", 6),
        ("forbidden", 7),
    ],
)
def test_every_filter_shows_in_its_rows_alone(name: str, kind: int) -> None:
    batch = probe_batch(torch.device("cpu"))
    assert name in {entry.name for entry in fields(batch)}
    value = getattr(batch, name)
    if isinstance(value, TokenLists):
        off = replace(value, start=torch.zeros_like(value.start), ids=value.ids[:0], values=None)
    else:
        off = torch.full_like(value, NEUTRAL.get(name, 0))
    before, after = sampled_bits(batch), sampled_bits(replace(batch, **{name: off}))
    changed = {row % FILTERS for row in range(ROWS) if before[row] != after[row]}
    assert changed == {kind}
