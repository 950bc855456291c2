"""The row-parallel product of `tp-invariant`: bits that do not depend on the number of ranks."""

from __future__ import annotations

import os
from functools import cache

import pytest
import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics import reference
from samebits.numerics.gpu.gemm_candidates import AHEAD, DESCRIPTORS, HOPPER, PERSISTENT, Tile
from samebits.numerics.gpu.gemm_operator import reference_candidate as chain_candidate
from samebits.numerics.gpu.gemm_problem import proof_inputs
from samebits.numerics.gpu.gemm_trials import RowTrials
from samebits.numerics.gpu.launch import target_name
from samebits.numerics.gpu.prover import Candidate, Proof, Rejection, Trial, first_difference
from samebits.numerics.gpu.tree_operator import (
    TreeProblem,
    TreeTile,
    reference_candidate,
    tile_candidate,
    workspace,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROWS, COLUMNS, DEPTH = 20, 64, 512
TILES = (
    TreeTile(Tile(32, 32, 16, 4, 2)),
    TreeTile(Tile(16, 32, 32, 4, 3)),
    TreeTile(Tile(16, 64, 32, 4, 3, swap=True)),
    TreeTile(Tile(64, 32, 16, 4, 4)),
    TreeTile(Tile(32, 32, 32, 4, 3, DESCRIPTORS)),
    TreeTile(Tile(16, 64, 32, 4, 3, PERSISTENT, swap=True)),
    TreeTile(Tile(16, 32, 32, 4, 3, DESCRIPTORS), parts=2),
    TreeTile(Tile(16, 64, 32, 4, 3, DESCRIPTORS, swap=True), parts=4),
    TreeTile(Tile(32, 16, 16, 4, 3, DESCRIPTORS), parts=8),
    TreeTile(Tile(16, 32, 32, 4, 3, DESCRIPTORS), parked=True),
)


def problem_of(dtype: torch.dtype, ranks: int = 1) -> TreeProblem:
    return TreeProblem(COLUMNS, DEPTH // ranks, 8 // ranks, dtype, torch.float32)


def act_of(device: torch.device) -> torch.dtype:
    return torch.float16 if INTERPRETED else torch.bfloat16


@cache
def trial_of(problem: TreeProblem, device: torch.device) -> Trial:
    """All tiles of a problem are held against one run of its reference."""
    inputs = proof_inputs(problem.product, ROWS, device)
    return RowTrials.of(reference_candidate(problem), inputs, problem.product.output).trial(ROWS)


def product(candidate: Candidate, x: Tensor, weight: Tensor) -> Tensor:
    out = torch.full((x.shape[0], weight.shape[0]), float("nan"), device=x.device)
    candidate.run((x, weight), (out,))
    return out


def balanced(parts: list[Tensor]) -> Tensor:
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def check_ranks_give_the_bits_of_one(ranks: int, device: torch.device) -> None:
    act = act_of(device)
    x, weight = proof_inputs(problem_of(act).product, ROWS, device)["cancelling atoms"]
    part = problem_of(act, ranks)
    pieces = [
        (left.contiguous(), right.contiguous())
        for left, right in zip(x.chunk(ranks, dim=1), weight.chunk(ranks, dim=1), strict=True)
    ]
    tile = TILES[0]
    for whole, share in (
        (reference_candidate(problem_of(act)), reference_candidate(part)),
        (
            tile_candidate(tile, problem_of(act), ROWS, device),
            tile_candidate(tile, part, ROWS, device),
        ),
    ):
        expected = product(whole, x, weight)
        parts = [product(share, *piece) for piece in pieces]
        assert first_difference("ranks", [balanced(parts)], [expected]) is None
        ascending = parts[0]
        for other in parts[1:]:
            ascending = ascending + other
        if ranks > 2:
            assert first_difference("chain of ranks", [ascending], [expected]) is not None


HOPPER_TILES = (
    TreeTile(Tile(128, 128, 64, 4, 4, HOPPER)),
    TreeTile(Tile(64, 128, 64, 4, 7, HOPPER)),
    TreeTile(Tile(128, 64, 64, 4, 4, HOPPER)),
    TreeTile(Tile(32, 64, 64, 4, 8, AHEAD, swap=True)),
    TreeTile(Tile(64, 128, 64, 4, 8, AHEAD, swap=True)),
)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter knows no Gluon")
@pytest.mark.parametrize("tile", HOPPER_TILES, ids=lambda tile: tile.name)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def check_tiles_for_hopper_have_the_reference_bits(tile: TreeTile, ranks: int, device: torch.device) -> None:
    for act, out in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        problem = TreeProblem(640, 1024 // ranks, 8 // ranks, act, out)
        if not tile.fits(problem, ROWS, target_name()):
            pytest.skip(f"{tile.name} is not for {target_name()}")
        verdict = trial_of(problem, device).prove(tile_candidate(tile, problem, ROWS, device))
        assert isinstance(verdict, Proof), verdict


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def check_tiles_have_the_reference_bits(tile: TreeTile, ranks: int, device: torch.device) -> None:
    problem = problem_of(act_of(device), ranks)
    if problem.leaves < tile.pieces:
        pytest.skip("more programs than leaves")
    candidate = tile_candidate(tile, problem, ROWS, device)
    shared = tile.pieces > 1  # then it leaves something behind that the next run finds
    for _ in range(2 if shared or not INTERPRETED else 1):
        verdict = trial_of(problem, device).prove(candidate)
        assert isinstance(verdict, Proof), verdict
    assert not bool(workspace(device).arrivals.any()), (
        "the next kernel would take its first part for the last"
    )


def check_parts_that_do_not_all_come_are_missed(device: torch.device) -> None:
    """The inverse: where the count of arrivals begins too low, nobody is last, and nothing is written."""
    problem = problem_of(act_of(device))
    candidate = tile_candidate(TILES[6], problem, ROWS, device)
    trial = trial_of(problem, device)
    arrivals = workspace(device).arrivals
    arrivals.fill_(-1)
    verdict = trial.prove(candidate)
    arrivals.zero_()
    assert isinstance(verdict, Rejection)


def check_one_chain_is_no_tree(device: torch.device) -> None:
    problem = problem_of(act_of(device))
    verdict = trial_of(problem, device).prove(chain_candidate(problem.product))
    assert isinstance(verdict, Rejection)
    assert verdict.difference is not None


def check_tiles_are_near_float64(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(7)
    act = act_of(device)
    x = torch.randn(ROWS, DEPTH, generator=generator).to(device, act)
    weight = torch.randn(COLUMNS, DEPTH, generator=generator).to(device, act)
    for tile in TILES:
        error = (
            product(tile_candidate(tile, problem_of(act), ROWS, device), x, weight)
            - reference.gemm(x, weight)
        ).abs()
        assert bool((error <= 8 * reference.gemm_bound(x, weight)).all())


def check_a_depth_that_has_no_leaves_is_refused(device: torch.device) -> None:
    with pytest.raises(NumericsError, match="cannot be cut into 8 leaves"):
        reference_candidate(TreeProblem(64, 384, 8, torch.float16, torch.float32))
