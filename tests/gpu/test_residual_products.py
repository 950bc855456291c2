"""Where a product is added to the residual in place, and where the pair serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from samebits.numerics.gpu import products
from samebits.numerics.gpu.bindings import Bindings, place_of
from samebits.numerics.gpu.cublaslt import parts_of
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.operator import Wish
from samebits.numerics.gpu.products import GpuLinear, ProvenProducts
from samebits.numerics.gpu.prover import Candidate
from samebits.numerics.gpu.residual_operator import (
    PAIR,
    ResidualOperator,
    ResidualProblem,
    residual_problem,
)

PROBLEM = ResidualProblem(64, 128, torch.bfloat16)


def operator_of(name: str) -> ResidualOperator:
    """One whose product is served by a candidate of that name."""
    served = Candidate(name, f"cublaslt 130100 {'00' * 64}", lambda inputs, outputs: None)
    return ResidualOperator(torch.device("cpu"), lambda problem, bucket: served)


@pytest.mark.parametrize(
    ("name", "parts"), [("cublaslt 3", 1), ("cublaslt 0 in 2", 2), ("cublaslt 1 in 4", 4)]
)
def test_the_librarys_algorithms_are_told_to_add(name: str, parts: int) -> None:
    in_place, pair = operator_of(name).recipes(PROBLEM, 8192)
    assert (in_place.name, in_place.fallback) == (f"{name} in place", False)
    assert (pair.name, pair.fallback) == (PAIR, True)
    assert parts_of(name) == parts


def test_beside_other_kernels_the_pair_serves() -> None:
    [only] = operator_of("persistent 128x256x64 w8 s3").recipes(PROBLEM, 8192)
    assert only.name == PAIR


def test_a_stored_proof_is_restored_while_the_same_product_serves() -> None:
    found = operator_of("cublaslt 3").restore(PROBLEM, 8192, "cublaslt 3 in place", "")
    assert found is not None and found.name == "cublaslt 3 in place"
    assert operator_of("cublaslt 2").restore(PROBLEM, 8192, "cublaslt 3 in place", "") is None


@pytest.mark.parametrize(
    "product",
    [
        GemmProblem(64, 128, torch.bfloat16, torch.bfloat16, bias=True),
        GemmProblem(64, 128, torch.bfloat16, torch.float32),
        GemmProblem(64, 128, torch.float32, torch.float32),
    ],
    ids=lambda product: product.key,
)
def test_products_that_are_never_added_in_place(product: GemmProblem) -> None:
    assert residual_problem(product) is None


def test_until_kernels_are_bound_the_residual_is_left_alone() -> None:
    device = torch.device("cpu")
    linear = GpuLinear(torch.ones(64, 128, dtype=torch.bfloat16), None, torch.bfloat16)
    residual = torch.zeros(2048, 64, dtype=torch.bfloat16)
    x = torch.ones(2048, 128, dtype=torch.bfloat16)
    assert not ProvenProducts(device).run_onto(x, linear, residual)
    assert not bool(residual.any())


def test_products_and_what_stands_behind_them_are_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Activations with few rows and residuals with many; where the pair won, nothing is added in place."""
    asked: list[list[tuple[str, str, tuple[int, ...]]]] = []

    def bound(wishes: Sequence[Wish[Any]], *others: Any, **named: Any) -> Bindings:
        asked.append([(wish.operator.clause, wish.problem.key, wish.buckets) for wish in wishes])
        places = [place_of(wish, bucket) for wish in wishes for bucket in wish.buckets]
        return Bindings({place: served_at(place) for place in places}, ())

    def served_at(place: tuple[str, str, int]) -> Candidate:
        clause, _, bucket = place
        name = PAIR if clause == ResidualOperator.clause and bucket == 128 else f"{clause} {bucket}"
        return Candidate(name, name, lambda inputs, outputs: None)

    monkeypatch.setattr(products, "bind_all", bound)
    monkeypatch.setattr(products, "device_key", lambda device: {"device": "none"})
    wide = GpuLinear(torch.ones(64, 128, dtype=torch.bfloat16), None, torch.bfloat16)
    narrow = GpuLinear(torch.ones(32, 128, dtype=torch.bfloat16), None, torch.bfloat16)
    x, residual = torch.ones(1, 128, dtype=torch.bfloat16), torch.zeros(1, 32, dtype=torch.bfloat16)
    proven = ProvenProducts(torch.device("cpu"))
    assert proven.run_gated(x, wide) is None
    assert not proven.run_onto(x, narrow, residual)
    proven.bind(
        [wide.problem, narrow.problem], lambda problem: (1, 64, 96, 128), tmp_path, lambda *news: None
    )
    assert [[(clause, buckets) for clause, _, buckets in wishes] for wishes in asked] == [
        [("gemm", (1, 64, 96, 128))] * 2,
        [("gemm and gated activation", (1, 64)), ("gemm and residual", (96, 128))],
    ]
    assert {place: one.name for place, one in proven.fused.items()} == {
        (wide.problem, 1): "gemm and gated activation 1",
        (wide.problem, 64): "gemm and gated activation 64",
    }
    assert {place: one.name for place, one in proven.in_place.items()} == {
        (narrow.problem, 96): "gemm and residual 96"
    }
    assert proven.identities >= {"gemm 128", "gemm and residual 96"}
