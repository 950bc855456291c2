"""The gated product by clusters has the bits of the pair, for every gate, and in a graph that is replayed."""

from __future__ import annotations

import os

import pytest
import torch

from samebits.numerics.gpu import gated_cluster
from samebits.numerics.gpu.gated_operator import GatedProblem, pair_candidate
from samebits.numerics.gpu.gemm_operator import reference_candidate
from samebits.numerics.gpu.gemm_problem import ATOM, proof_inputs
from samebits.numerics.gpu.launch import target_name
from samebits.numerics.gpu.prover import Candidate, Case, Proof, Rejection, Tensors, Trial, differing
from samebits.numerics.gpu.rough_silu import GATES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter knows no CUDA")
ROWS = 2048
DEPTHS = (256, 320, 4096)
"""As many blocks of K as lie in shared memory, one more, and many times as many."""


@pytest.fixture(autouse=True)
def on_hopper() -> None:
    if target_name() != "sm_90":
        pytest.skip(f"clusters are not for {target_name()}")


def pair_of(problem: GatedProblem) -> Candidate:
    return pair_candidate(problem, reference_candidate(problem.product))


def trial_of(problem: GatedProblem, device: torch.device) -> Trial:
    cases = [
        Case(name, given, problem.output(ROWS))
        for name, given in proof_inputs(problem.product, ROWS, device).items()
    ]
    return Trial.of(pair_of(problem), cases)


def swapped(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with its first two atoms of K the other way round."""
    return torch.cat([matrix[:, ATOM : 2 * ATOM], matrix[:, :ATOM], matrix[:, 2 * ATOM :]], 1)


@pytest.mark.parametrize("depth", DEPTHS)
def check_clusters_have_the_bits_of_the_pair(depth: int, device: torch.device) -> None:
    """Four tiles for some clusters and three for others."""
    problem = GatedProblem(3328, depth, torch.bfloat16)
    assert gated_cluster.fits(problem.width, depth, problem.act, ROWS, target_name())
    verdict = trial_of(problem, device).prove(gated_cluster.candidate())
    assert isinstance(verdict, Proof), verdict


def check_another_order_of_atoms_is_rejected(device: torch.device) -> None:
    inner = gated_cluster.candidate()

    def run(inputs: Tensors, outputs: Tensors) -> None:
        inner.run(tuple(map(swapped, inputs)), outputs)

    verdict = trial_of(GatedProblem(384, 320, torch.bfloat16), device).prove(Candidate("swapped", "", run))
    assert isinstance(verdict, Rejection)


def check_every_finite_gate_has_the_bits_of_the_pair(device: torch.device) -> None:
    """Each row picks one column of the weights, so its sums are the weights themselves."""
    depth = 256
    problem = GatedProblem(GATES // depth, depth, torch.bfloat16)
    x = torch.eye(depth, device=device, dtype=torch.bfloat16).repeat(ROWS // depth, 1)
    gates = torch.arange(GATES, dtype=torch.int32, device=device).to(torch.int16).view(torch.bfloat16)
    gates = torch.where(gates.isfinite(), gates, 1.0).view(problem.width, depth)
    generator = torch.Generator(device).manual_seed(3)
    cases = []
    for turn in range(8):
        ups = torch.randn(gates.shape, device=device, generator=generator) * 2.0 ** (8 * (turn - 4))
        inputs = (x, torch.cat([gates, ups.bfloat16()]))
        cases.append(Case(f"turn {turn}", inputs, problem.output(ROWS)))
    verdict = Trial.of(pair_of(problem), cases).prove(gated_cluster.candidate())
    assert isinstance(verdict, Proof), verdict


def check_a_replayed_graph_reads_its_inputs_anew(device: torch.device) -> None:
    problem = GatedProblem(1024, 512, torch.bfloat16)
    x = torch.randn(ROWS, problem.depth, device=device).bfloat16()
    weight = torch.randn(2 * problem.width, problem.depth, device=device).bfloat16()
    out, expected = (torch.empty(ROWS, problem.width, device=device, dtype=torch.bfloat16) for _ in range(2))
    candidate, pair = gated_cluster.candidate(), pair_of(problem)
    candidate.run((x, weight), (out,))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        candidate.run((x, weight), (out,))
    before = out.clone()
    for _ in range(3):
        x.copy_(torch.randn(x.shape, device=device))
        pair.run((x, weight), (expected,))
        graph.replay()
        torch.cuda.synchronize()
        assert not bool(differing(out, expected).any())
        assert bool(differing(out, before).any()), "the inputs are others"
