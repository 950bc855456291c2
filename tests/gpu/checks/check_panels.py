"""Products in panels have the clause's bits, alone and behind kernels that still write what they read."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch

from samebits.numerics.gpu.gated_operator import GatedProblem, pair_candidate
from samebits.numerics.gpu.gemm_operator import product_trials, reference_candidate, single_panels
from samebits.numerics.gpu.gemm_problem import GemmProblem, proof_inputs
from samebits.numerics.gpu.gemm_trials import RowTrials
from samebits.numerics.gpu.launch import target_name
from samebits.numerics.gpu.norm import rms_norm
from samebits.numerics.gpu.panel_candidates import PAIRS, SINGLES, WIDEST_SINGLE, PanelProblem, PanelTile
from samebits.numerics.gpu.prover import Candidate, Proof, Rejection, Tensors
from samebits.numerics.gpu.tree_operator import TreeProblem
from samebits.numerics.gpu.tree_operator import reference_candidate as tree_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter knows no Gluon")
PAIR_TILES = [tile for _, tiles in PAIRS for tile in tiles]
SINGLE_TILES = [tile for _, tiles in SINGLES for tile in tiles]


@pytest.fixture(autouse=True)
def on_hopper() -> None:
    if target_name() != "sm_90":
        pytest.skip(f"panels are not for {target_name()}")


def candidate_of(tile: PanelTile, problem: PanelProblem, rows: int) -> Candidate:
    assert tile.fits(problem, rows, target_name())
    return tile.candidate(problem)


def pair_trials(problem: GatedProblem, rows: int, device: torch.device) -> RowTrials:
    reference = pair_candidate(problem, reference_candidate(problem.product))
    return RowTrials.of(reference, proof_inputs(problem.product, rows, device), problem.output)


@pytest.mark.parametrize("tile", SINGLE_TILES, ids=lambda tile: tile.name)
def check_one_panel_has_the_bits_of_the_clause(tile: PanelTile, device: torch.device) -> None:
    """A ring longer than K, and shorter; fewer rows than the tile has."""
    for act, columns, depth in ((torch.bfloat16, WIDEST_SINGLE, 256), (torch.float16, 544, 4096)):
        for out in (act, torch.float32):
            problem = GemmProblem(columns, depth, act, out)
            for rows in (tile.rows, tile.rows - 3):
                candidate = candidate_of(tile, single_panels(problem), rows)
                verdict = product_trials(problem, rows, device).trial(rows).prove(candidate)
                assert isinstance(verdict, Proof), f"{problem.key}: {verdict}"


@pytest.mark.parametrize("tile", PAIR_TILES, ids=lambda tile: tile.name)
def check_gate_and_up_have_the_bits_of_the_pair(tile: PanelTile, device: torch.device) -> None:
    for act, width, depth in ((torch.bfloat16, 4256, 256), (torch.float16, 544, 2048)):
        problem = GatedProblem(width, depth, act)
        for rows in (tile.rows, tile.rows - 3):
            candidate = candidate_of(tile, problem.panels, rows)
            verdict = pair_trials(problem, rows, device).trial(rows).prove(candidate)
            assert isinstance(verdict, Proof), f"{problem.key}: {verdict}"


@pytest.mark.parametrize("leaves", [2, 4, 8])
@pytest.mark.parametrize("tile", SINGLE_TILES, ids=lambda tile: tile.name)
def check_panels_sum_leaves_as_the_tree_does(tile: PanelTile, leaves: int, device: torch.device) -> None:
    for act, out in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        problem = TreeProblem(544, 4096, leaves, act, out)
        inputs = proof_inputs(problem.product, tile.rows, device)
        trials = RowTrials.of(tree_reference(problem), inputs, problem.product.output)
        verdict = trials.trial(tile.rows).prove(candidate_of(tile, problem.panels, tile.rows))
        assert isinstance(verdict, Proof), f"{problem.key}: {verdict}"
        chain = candidate_of(tile, single_panels(problem.product), tile.rows)
        assert isinstance(trials.trial(tile.rows).prove(chain), Rejection), "a chain is no tree"


def check_up_for_gate_is_rejected(device: torch.device) -> None:
    problem = GatedProblem(256, 512, torch.bfloat16)
    right = candidate_of(PAIR_TILES[0], problem.panels, 8)

    def run(inputs: Tensors, outputs: Tensors) -> None:
        right.run((inputs[0], inputs[1].roll(problem.width, 0).contiguous()), outputs)

    trial = pair_trials(problem, 8, device).trial(8)
    assert isinstance(trial.prove(right), Proof)
    assert isinstance(trial.prove(Candidate("swapped", "", run)), Rejection)


@pytest.mark.parametrize("tile", SINGLE_TILES, ids=lambda tile: tile.name)
def check_panels_that_start_early_read_nothing_stale(tile: PanelTile, device: torch.device) -> None:
    """Norm, gated pair and product in turns, each reading what the one ahead wrote, replayed with new inputs."""
    width, layers, act = 1024, 6, torch.bfloat16
    gated, down = GatedProblem(width, width, act), GemmProblem(width, width, act, act)
    pair = next(one for one in PAIR_TILES if (one.rows, one.wait) == (tile.rows, tile.wait))
    rows = tile.rows - 3
    early = (candidate_of(pair, gated.panels, rows), candidate_of(tile, single_panels(down), rows))
    slow = (pair_candidate(gated, reference_candidate(gated.product)), reference_candidate(down))
    weights = [
        torch.randn(3 * width, width, device=device).mul_(width**-0.5).bfloat16() for _ in range(layers)
    ]
    scale = torch.ones(width, device=device).bfloat16()
    x = torch.empty(rows, width, device=device).bfloat16()
    states = [torch.empty_like(x) for _ in range(3 * layers)]

    def run(candidates: tuple[Candidate, Candidate], apart: bool) -> None:
        source = x
        for layer, weight in enumerate(weights):
            normed, between, result = states[3 * layer : 3 * layer + 3]
            steps = (
                partial(rms_norm, source, scale, 1e-6, normed),
                partial(candidates[0].run, (normed, weight[: 2 * width]), (between,)),
                partial(candidates[1].run, (between, weight[2 * width :]), (result,)),
            )
            for step in steps:
                step()
                if apart:
                    torch.cuda.synchronize()
            source = result

    expected = []
    for seed in range(8):
        x.normal_(generator=torch.Generator(device).manual_seed(seed))
        run(slow, apart=True)
        expected.append(states[-1].clone())
    run(early, apart=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(early, apart=False)
    for seed in reversed(range(8)):
        for state in states:
            state.fill_(float("nan"))
        x.normal_(generator=torch.Generator(device).manual_seed(seed))
        graph.replay()
        assert torch.equal(states[-1].view(torch.int16), expected[seed].view(torch.int16)), seed
    assert not torch.equal(expected[0], expected[1])
