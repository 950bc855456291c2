"""One row through one matrix, alone and among others."""

from __future__ import annotations

import torch

from samebits.numerics.profiles import make_operators

IN_FEATURES = 1024
OUT_FEATURES = 1024
ROWS = 256


def changed_share(profile: str, threads: int) -> float:
    """The share of float32 results of a row that have other bits in a product of 256 rows than in one of 1."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT_FEATURES, IN_FEATURES, generator=generator)
    rows = torch.randn(ROWS, IN_FEATURES, generator=generator)
    if profile == "torch":
        alone, among = torch.mm(rows[:1], weight.T), torch.mm(rows, weight.T)[:1]
    else:
        operators = make_operators(profile, "cpu", threads)
        packed = operators.pack_linear(weight)
        alone, among = operators.linear(rows[:1], packed), operators.linear(rows, packed)[:1]
    # As integers: a comparison of floats says that -0 equals +0.
    differing = alone.contiguous().view(torch.int32) != among.contiguous().view(torch.int32)
    return float(differing.sum()) / differing.numel()
