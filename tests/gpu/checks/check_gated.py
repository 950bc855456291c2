"""The fused gate and up product has the bits of the pair; without the rounding between, it has not."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from samebits.numerics import reference
from samebits.numerics.gpu.gated_operator import GatedProblem, fused_candidate, pair_candidate
from samebits.numerics.gpu.gemm_candidates import DESCRIPTORS, PERSISTENT, Tile
from samebits.numerics.gpu.gemm_operator import reference_candidate
from samebits.numerics.gpu.gemm_problem import GemmProblem, proof_inputs
from samebits.numerics.gpu.prover import Candidate, Case, Proof, Rejection, Tensors, Trial

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROWS = 20
TILES = (
    Tile(16, 16, 32, 4, 3),
    Tile(16, 64, 32, 4, 2, swap=True),
    Tile(32, 32, 64, 4, 3, DESCRIPTORS),
    Tile(16, 32, 64, 4, 3, PERSISTENT, swap=True),
)


def trial_of(problem: GatedProblem, device: torch.device) -> Trial:
    cases = [
        Case(name, given, problem.output(ROWS))
        for name, given in proof_inputs(problem.product, ROWS, device).items()
    ]
    return Trial.of(pair_candidate(problem, reference_candidate(problem.product)), cases)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter's atoms follow the tile")
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def check_fused_tiles_have_the_bits_of_the_pair(tile: Tile, device: torch.device) -> None:
    for act in (torch.bfloat16, torch.float16):
        problem = GatedProblem(192, 256, act)
        verdict = trial_of(problem, device).prove(fused_candidate(tile, problem, ROWS))
        assert isinstance(verdict, Proof), verdict


def check_a_pair_without_the_rounding_is_rejected(device: torch.device) -> None:
    """The product kept in float32 between the two: more exact, and other bits."""
    act = torch.float16
    problem = GatedProblem(64, 128, act)
    wide = reference_candidate(GemmProblem(128, 128, act, torch.float32))

    def run(inputs: Tensors, outputs: Tensors) -> None:
        between = torch.empty(ROWS, 128, device=device)
        wide.run(inputs, (between,))
        gate, up = between[:, :64], between[:, 64:]
        outputs[0].copy_((gate / (1 + torch.exp(-gate)) * up).to(act))

    verdict = trial_of(problem, device).prove(Candidate("unrounded", "", run))
    assert isinstance(verdict, Rejection)


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def check_fused_tiles_are_near_float64(tile: Tile, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(5)
    for width, depth in ((96, 128), (37, 72)):
        if width == 37 and tile.kind != "tile":
            continue
        problem = GatedProblem(width, depth, torch.float16)
        x = torch.randn(ROWS, depth, generator=generator).to(device, torch.float16)
        weight = torch.randn(2 * width, depth, generator=generator).to(device, torch.float16)
        out = torch.empty(ROWS, width, device=device, dtype=torch.float16)
        tile = replace(tile, columns=min(tile.columns, 32))
        fused_candidate(tile, problem, ROWS).run((x, weight), (out,))
        expected = reference.silu_mul(reference.gemm(x, weight))
        error = (out.double() - expected).abs()
        assert bool((error <= 2e-3 * expected.abs() + 1e-2).all()), f"{error.max()}"
