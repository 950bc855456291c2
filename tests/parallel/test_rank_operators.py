"""Operators over ranks: the clauses by an independent evaluation, equal bits at every degree, and their inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rank_threads import on_ranks
from torch import Tensor

from samebits.errors import NumericsError
from samebits.models.shards import ModelShard
from samebits.numerics.adversarial import cancelling_product, wide_rows
from samebits.numerics.cpu.operators import CpuOperators

LEAVES = 8
COLUMNS = 35  # two panels and a ragged end


def product(x: Tensor, weight: Tensor, bias: Tensor | None, profile: str, size: int) -> list[Tensor]:
    """The row-parallel product on each of `size` ranks."""

    def work(group) -> Tensor:
        operators = CpuOperators(threads=1, profile=profile, group=group)
        shard = ModelShard(group.rank, size)
        packed = operators.pack_row_linear(shard.inputs(weight), bias)
        return operators.row_linear(shard.inputs(x).contiguous(), packed)

    return on_ranks(size, work)


def chain(x: Tensor, weight: Tensor) -> Tensor:
    """One chain over k from +0, through the plain linear, which has its own tests."""
    operators = CpuOperators(threads=1)
    return operators.linear(x.contiguous(), operators.pack_linear(weight.contiguous()))


def leaf_sums(x: Tensor, weight: Tensor, leaves: int) -> list[np.ndarray]:
    return [
        chain(part, w).numpy() for part, w in zip(x.chunk(leaves, 1), weight.chunk(leaves, 1), strict=True)
    ]


def tree(parts: list[np.ndarray]) -> np.ndarray:
    """Neighbours joined until one is left, in float32."""
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


@pytest.fixture(scope="module")
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose products cancel across the whole of K, so that any other order of sums shows."""
    x, weight = cancelling_product(5, 7, COLUMNS, 512, torch.bfloat16)
    return x, weight, wide_rows(6, 1, COLUMNS)[0]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("with_bias", [False, True])
def test_tree_is_the_same_at_every_degree(case, size: int, with_bias: bool) -> None:
    x, weight, bias = case
    expected = tree(leaf_sums(x, weight, LEAVES))
    if with_bias:
        expected = expected + bias.numpy()
    for found in product(x, weight, bias if with_bias else None, "tp-invariant", size):
        assert found.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_exact_adds_ranks_in_ascending_order(case, size: int) -> None:
    x, weight, bias = case
    parts = leaf_sums(x, weight, size)
    expected = parts[0]
    for part in parts[1:]:
        expected = expected + part
    for found in product(x, weight, bias, "exact", size):
        assert found.numpy().tobytes() == (expected + bias.numpy()).tobytes()


def test_the_case_tells_orders_apart(case) -> None:
    """The inverse: a chain over all of K, the ascending sum of leaves, and the exact profile at another degree."""
    x, weight, _ = case
    sums = leaf_sums(x, weight, LEAVES)
    ascending = sums[0]
    for part in sums[1:]:
        ascending = ascending + part
    expected = tree(sums).tobytes()
    assert chain(x, weight).numpy().tobytes() != expected
    assert ascending.tobytes() != expected
    exact = [product(x, weight, None, "exact", size)[0].numpy().tobytes() for size in (1, 2, 4)]
    assert len(set(exact)) == 3


@pytest.mark.parametrize("profile", ["exact", "tp-invariant"])
def test_rows_know_no_neighbour(case, profile: str) -> None:
    x, weight, _ = case
    together = product(x, weight, None, profile, 2)[0]
    for row in range(x.shape[0]):
        alone = product(x[row : row + 1], weight, None, profile, 2)[0]
        assert alone.numpy().tobytes() == together[row : row + 1].numpy().tobytes()


@pytest.mark.parametrize("vocabulary", [1000, 1025, 2500, 5000])
@pytest.mark.parametrize("size", [2, 4])
def test_vocabulary_over_ranks(vocabulary: int, size: int) -> None:
    """Embedding and logits are those of one rank, whatever is left over; a rank may hold nothing but padding."""
    table = wide_rows(3, vocabulary, 32).to(torch.bfloat16)
    hidden = wide_rows(4, 5, 32)
    ids = torch.tensor([0, vocabulary - 1, vocabulary // 2, 1, 0])
    one = CpuOperators(threads=1)
    embedded = one.embed(ids, table).numpy().tobytes()
    logits = one.logits(hidden, one.pack_output(table, vocabulary)).numpy().tobytes()

    def work(group) -> tuple[bytes, bytes]:
        operators = CpuOperators(threads=1, group=group)
        own = ModelShard(group.rank, size).vocabulary(table)
        found = operators.logits(hidden, operators.pack_output(own, vocabulary))
        return operators.embed(ids, own).numpy().tobytes(), found.numpy().tobytes()

    assert on_ranks(size, work) == [(embedded, logits)] * size


def test_probe_of_the_tree_is_the_same_at_every_degree() -> None:
    alone = CpuOperators(threads=1, profile="tp-invariant").probe_digests([torch.bfloat16])
    ranks = on_ranks(
        2,
        lambda group: CpuOperators(threads=1, profile="tp-invariant", group=group).probe_digests(
            [torch.bfloat16]
        ),
    )
    assert ranks == [alone, alone]
    assert "row-parallel gemm" in alone
    assert "row-parallel gemm" not in CpuOperators(threads=1).probe_digests([torch.bfloat16])


def test_degrees_that_leaves_cannot_share_are_refused() -> None:
    with pytest.raises(NumericsError, match="8 leaves, which 3 ranks cannot share"):
        on_ranks(3, lambda group: CpuOperators(threads=1, profile="tp-invariant", group=group))


def test_inputs_that_leaves_cannot_share_are_refused() -> None:
    operators = CpuOperators(threads=1, profile="tp-invariant")
    with pytest.raises(NumericsError, match="100 input features on this rank cannot be cut into 8 leaves"):
        operators.pack_row_linear(torch.zeros(4, 100))
