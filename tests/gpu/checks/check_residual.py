"""A product that is added onto the residual in place has the bits of the pair; rounded once, it has not."""

from __future__ import annotations

import os

import pytest
import torch

from samebits.numerics.gpu import cublaslt
from samebits.numerics.gpu.gemm_candidates import library_recipe
from samebits.numerics.gpu.gemm_operator import reference_candidate
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.norm import add_rms_norm
from samebits.numerics.gpu.prover import Candidate, Proof, Rejection, Tensors, differing
from samebits.numerics.gpu.residual_operator import (
    ResidualProblem,
    in_place_recipe,
    pair_candidate,
    residual_inputs,
    residual_trials,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROWS = 20 if INTERPRETED else 2048
ACTS = (torch.float16,) if INTERPRETED else (torch.bfloat16, torch.float16)


@pytest.fixture(params=ACTS, ids=str)
def problem(request: pytest.FixtureRequest) -> ResidualProblem:
    return (
        ResidualProblem(64, 128, request.param) if INTERPRETED else ResidualProblem(1024, 512, request.param)
    )


def library_candidates(problem: ResidualProblem, parts: int) -> list[Candidate]:
    found = cublaslt.matmul(problem.product, ROWS // parts).proposals(8)
    return [
        library_recipe(problem.product, ROWS, one.text, place, parts).make()
        for place, one in enumerate(found)
    ]


@pytest.mark.skipif(INTERPRETED, reason="the library runs on a GPU")
@pytest.mark.parametrize("parts", [1, 2])
def check_the_library_adds_in_place_as_the_clause_does(
    device: torch.device, problem: ResidualProblem, parts: int
) -> None:
    trial = residual_trials(problem, ROWS, device).trial(ROWS)
    products = library_candidates(problem, parts)
    assert products
    for product in products:
        recipe = in_place_recipe(problem, ROWS, product)
        assert recipe is not None and recipe.name == f"{product.name} in place"
        verdict = trial.prove(recipe.make())
        assert isinstance(verdict, Proof), verdict


@pytest.mark.skipif(INTERPRETED, reason="the library runs on a GPU")
def check_the_bits_are_those_that_the_norm_adds(device: torch.device, problem: ResidualProblem) -> None:
    product = library_candidates(problem, 1)[0]
    recipe = in_place_recipe(problem, ROWS, product)
    assert recipe is not None
    weight_of_norm = torch.ones(problem.columns, dtype=problem.act, device=device)
    for x, weight, residual in residual_inputs(problem, ROWS, device).values():
        between = torch.empty_like(residual)
        product.run((x, weight), (between,))
        expected = add_rms_norm(between, residual, weight_of_norm, 1e-6)[1]
        recipe.make().run((x, weight, residual), ())
        assert not bool(differing(residual, expected).any())


def check_one_rounding_is_rejected(device: torch.device, problem: ResidualProblem) -> None:
    """What the library gives for a residual that lies elsewhere: the sum is rounded, the product is not."""
    wide = reference_candidate(GemmProblem(problem.columns, problem.depth, problem.act, torch.float32))

    def run(inputs: Tensors, outputs: Tensors) -> None:
        x, weight, residual = inputs
        product = torch.empty(residual.shape, device=device)
        wide.run((x, weight), (product,))
        residual.copy_((product + residual.float()).to(problem.act))

    verdict = residual_trials(problem, ROWS, device).trial(ROWS).prove(Candidate("rounded once", "", run))
    assert isinstance(verdict, Rejection) and verdict.difference is not None


def check_the_references_sum_is_rounded_twice(device: torch.device, problem: ResidualProblem) -> None:
    """The product to act, and the sum of the two in float32 to act."""
    trials = residual_trials(problem, ROWS, device)
    for name, (x, weight, residual) in trials.inputs.items():
        product = torch.empty_like(residual)
        reference_candidate(problem.product).run((x, weight), (product,))
        expected = (product.float() + residual.float()).to(problem.act)
        assert not bool(differing(trials.expected[name][0], expected).any()), name


def check_the_pair_is_proven_at_fewer_rows(device: torch.device, problem: ResidualProblem) -> None:
    pair = pair_candidate(problem, reference_candidate(problem.product))
    for rows in (ROWS // 2, ROWS):
        assert isinstance(residual_trials(problem, ROWS, device).trial(rows).prove(pair), Proof)


def check_a_sum_without_the_product_is_rejected(device: torch.device, problem: ResidualProblem) -> None:
    idle = Candidate("idle", "", lambda inputs, outputs: None)
    assert isinstance(residual_trials(problem, ROWS, device).trial(ROWS).prove(idle), Rejection)
