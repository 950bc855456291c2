"""Which weights are asked for ahead: sizes, and the order in which a model reads them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from samebits.numerics.gpu.prefetch import PrefetchLimits, ReadingOrder, prefetch_of

KIB = 1 << 10


@pytest.mark.parametrize(
    ("rows", "depth", "limit", "width", "count"),
    [
        (64, 4096, 64 * 8 * KIB, 8 * KIB, 64),
        (64, 4096, 1 << 30, 8 * KIB, 64),
        (64, 4096, 64 * KIB + 100, 1024, 64),
        (64, 4096, 8 * KIB, 512, 16),
        (64, 100, 1 << 20, 0, 0),
        (64, 4096, 0, 0, 0),
        (64, 4096, 511, 512, 0),
    ],
)
def test_about_as_many_bytes_as_are_wanted(rows: int, depth: int, limit: int, width: int, count: int) -> None:
    weight = torch.zeros(rows, depth, dtype=torch.bfloat16)
    found = prefetch_of(weight, limit)
    assert (found.width, found.rows) == (width, count)
    assert found.width * found.rows <= limit
    assert found.width % 16 == 0 and found.width <= 2 * depth
    assert found.arguments == (weight, depth, width, count)


def test_the_next_weight_is_known_after_one_step() -> None:
    order = ReadingOrder(PrefetchLimits(attention=1 << 20, norm=1 << 10, rows=4))
    weights = [torch.zeros(8, 1024) for _ in range(3)]
    assert order.during_norm(1) is None
    for weight in weights:
        order.read(weight)
    assert order.during_norm(1) is None  # what follows the last one is not known yet
    order.read(weights[0])
    found = order.during_attention(4)
    assert found is not None and found.weight is weights[1] and found.width == 4 * KIB
    assert order.during_attention(5) is None
    order.read(weights[1])
    order.read(weights[2])
    found = order.during_norm(1)
    assert found is not None and found.weight is weights[0] and (found.width, found.rows) == (512, 2)


def test_nothing_is_asked_for_without_limits() -> None:
    order = ReadingOrder(PrefetchLimits())
    weight = torch.zeros(8, 1024)
    for _ in range(3):
        order.read(weight)
    assert order.during_norm(1) is None and order.during_attention(1) is None
