"""The GEMM clause: the prover rejects planted wrong kernels, takes right ones, and results are near float64's."""

from __future__ import annotations

import os

import pytest
import torch
from gemm_mutants import MUTANTS, RIGHT, SHIFTED, mutant_candidate

from samebits.numerics import reference
from samebits.numerics.gpu.gemm_candidates import DESCRIPTORS, PERSISTENT, Tile, launch_tile
from samebits.numerics.gpu.gemm_operator import reference_candidate
from samebits.numerics.gpu.gemm_problem import GemmProblem, case_of, proof_inputs
from samebits.numerics.gpu.launch import load
from samebits.numerics.gpu.prover import Candidate, Proof, Rejection, Tensors, Trial

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ATOMS_OF_ONE = (5,)
"""Mutants of the atom itself, which the interpreter's atoms (numpy's dot) do not show."""


def trial_of(problem: GemmProblem, rows: int, device: torch.device) -> Trial:
    cases = [
        case_of(name, given, problem, rows) for name, given in proof_inputs(problem, rows, device).items()
    ]
    return Trial.of(reference_candidate(problem), cases)


def problems(dtypes: list[torch.dtype]) -> list[GemmProblem]:
    return [GemmProblem(64, 208, act, out) for act in dtypes for out in {act, torch.float32}]


@pytest.fixture
def rows() -> int:
    return 20 if INTERPRETED else 256


def check_every_mutant_is_rejected(device: torch.device, dtypes: list[torch.dtype], rows: int) -> None:
    kept = []
    for problem in problems(dtypes):
        trial = trial_of(problem, rows, device)
        for name, mutant in MUTANTS.items():
            if INTERPRETED and mutant in ATOMS_OF_ONE:
                continue
            if name == "accumulation in the activation type" and problem.act is torch.float32:
                continue
            if name == "half atoms" and problem.act is torch.float32:
                continue  # an atom of float32 is one product
            verdict = trial.prove(mutant_candidate(problem, mutant))
            if not isinstance(verdict, Rejection) or verdict.difference is None:
                kept.append(f"{problem.key}: {name}: {verdict}")
    assert not kept, "\n".join(kept)


def check_a_single_row_shows_every_mutant(device: torch.device) -> None:
    if INTERPRETED:
        pytest.skip("one row of few columns is too little data for a proof")
    kept = []
    for out in (torch.bfloat16, torch.float32):
        problem = GemmProblem(4096, 4096, torch.bfloat16, out)
        trial = trial_of(problem, 1, device)
        for name, mutant in MUTANTS.items():
            if mutant in (8, SHIFTED):
                continue  # need a neighbour
            if isinstance(trial.prove(mutant_candidate(problem, mutant)), Proof):
                kept.append(f"{problem.key}: {name}")
    assert not kept, "\n".join(kept)


def check_the_right_order_is_proven(device: torch.device, dtypes: list[torch.dtype], rows: int) -> None:
    for problem in problems(dtypes):
        verdict = trial_of(problem, rows, device).prove(mutant_candidate(problem, RIGHT))
        assert isinstance(verdict, Proof), verdict


def tile_candidate(tile: Tile, problem: GemmProblem, rows: int) -> Candidate:
    kernel = load(tile.source(problem, rows))

    def run(inputs: Tensors, outputs: Tensors) -> None:
        launch_tile(kernel, tile, problem, inputs, outputs)

    return Candidate(tile.name, kernel.digest, run)


SMALL_TILES = (
    Tile(16, 32, 64, 4, 3),
    Tile(16, 64, 32, 4, 2, swap=True),
    Tile(32, 32, 16, 4, 1, group=2),
    Tile(16, 32, 64, 4, 3, DESCRIPTORS, swap=True),
    Tile(32, 32, 32, 4, 3, DESCRIPTORS),
    Tile(32, 64, 32, 4, 3, PERSISTENT),
)


@pytest.mark.parametrize("tile", SMALL_TILES, ids=lambda tile: tile.name)
@pytest.mark.parametrize("shape", [(64, 128), (70, 72), (37, 41)], ids=str)
def check_tiles_are_near_float64(
    tile: Tile, shape: tuple[int, int], device: torch.device, dtypes: list[torch.dtype]
) -> None:
    """Every edge: rows, columns and depth that no tile divides."""
    bias = shape[0] % 2 == 1
    generator = torch.Generator().manual_seed(3)
    for act in dtypes:
        problem = GemmProblem(*shape, act, torch.float32, bias)
        if tile.kind != "tile" and (shape[1] * act.itemsize % 16 or act is torch.float32):
            continue
        for rows in (1, 19):
            x = torch.randn(rows, shape[1], generator=generator).to(device, act)
            weight = torch.randn(shape, generator=generator).to(device, act)
            addend = torch.randn(shape[0], generator=generator).to(device, act) if bias else None
            out = torch.full((rows, shape[0]), float("nan"), device=device)
            inputs = (x, weight) if addend is None else (x, weight, addend)
            tile_candidate(tile, problem, rows).run(inputs, (out,))
            expected = reference.gemm(x, weight, addend)
            bound = 8 * reference.gemm_bound(x, weight, addend)
            error = (out.double() - expected).abs()
            assert bool((error <= bound).all()), f"{problem.key} at {rows} rows: {error.max()}"
