"""Where a product is added to the residual in place, and where the pair serves."""

from __future__ import annotations

import pytest
import torch

from samebits.numerics.gpu.cublaslt import parts_of
from samebits.numerics.gpu.gemm_problem import GemmProblem
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
