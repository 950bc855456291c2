"""Every kernel of every captured step is one that was proven, or a clause's own kernel, or moves bits only."""

from __future__ import annotations

import os

import pytest
import torch
from gpu_engine import gpu_engine

from samebits.engine.engine import Engine
from samebits.numerics.gpu.graph_nodes import KernelNode, captured_nodes, kernel_nodes
from samebits.numerics.gpu.operators import GpuOperators
from samebits.numerics.gpu.products import ProvenProducts
from samebits.numerics.gpu.prover import Candidate

pytestmark = pytest.mark.gpu

CLAUSES = {
    "copy_rows", "rms_norm_rows", "norm_rope_store_rows", "silu_mul_rows", "plan_ranges", "attention_ranges",
    "plan_claims", "attention_claims_hopper", "block_partials", "fold_partials", "logprobs_of_pairs", "classify_rows",
    "best_of_chunks", "scores_of_chunks", "choose_tokens",
}  # fmt: skip
"""Kernels that have no other candidate."""
COPYING = (
    "index",
    "copy",
    "TensorAssign",
    "Fill",
    "clamp",
    "arange",
    "CUDAFunctor_add",
    "sub",
    "BUnaryFunctor",
)
"""Parts of the (mangled) names of torch's kernels that move integers."""


def strangers(engine: Engine, proven: set[int]) -> list[str]:
    """Names of kernels in the engine's graphs that nothing accounts for."""
    found = []
    for _, graph in engine.loop.runner.graphs.items():  # type: ignore[attr-defined]
        for part in (graph.forward, *graph.sampling):
            found += [node.name for node in kernel_nodes(part.graph) if not known(node, proven)]
    return found


def known(node: KernelNode, proven: set[int]) -> bool:
    return (
        node.handle in proven
        or node.name in CLAUSES
        or ("2at6native" in node.name and any(part in node.name for part in COPYING))
    )


def proven_handles(engine: Engine) -> set[int]:
    """The kernels of the candidates that are bound, each captured alone."""
    operators = engine.runner.operators
    assert isinstance(operators, GpuOperators)
    products = operators.products
    assert isinstance(products, ProvenProducts)
    handles = set()
    for (problem, rows), candidate in products.bound.items():
        x = torch.zeros(rows, problem.depth, dtype=problem.act, device="cuda")
        weight = torch.zeros(problem.columns, problem.depth, dtype=problem.act, device="cuda")
        out = torch.empty(rows, problem.columns, dtype=problem.out, device="cuda")
        handles |= handles_of(candidate, (x, weight), out)
    for (problem, rows), candidate in products.fused.items():
        x = torch.zeros(rows, problem.depth, dtype=problem.act, device="cuda")
        weight = torch.zeros(problem.columns, problem.depth, dtype=problem.act, device="cuda")
        out = torch.empty(rows, problem.columns // 2, dtype=problem.out, device="cuda")
        handles |= handles_of(candidate, (x, weight), out)
    for (problem, rows), candidate in products.in_place.items():
        x = torch.zeros(rows, problem.depth, dtype=problem.act, device="cuda")
        weight = torch.zeros(problem.columns, problem.depth, dtype=problem.act, device="cuda")
        residual = torch.zeros(rows, problem.columns, dtype=problem.act, device="cuda")
        handles |= handles_of(candidate, (x, weight, residual))
    return handles


def handles_of(candidate: Candidate, inputs: tuple[torch.Tensor, ...], *outputs: torch.Tensor) -> set[int]:
    """What a candidate launches."""
    candidate.run(inputs, outputs)
    return {node.handle for node in captured_nodes(lambda: candidate.run(inputs, outputs))}


@pytest.mark.parametrize("most", [16, 128])
def test_every_node_is_known(most: int) -> None:
    # Another shape by SAMEBITS_TEST_MODEL, such as the one that is served.
    model = os.environ.get("SAMEBITS_TEST_MODEL", "tiny")
    engine = gpu_engine(model, "dummy", max_running=most, step_tokens=4 * most)
    proven = proven_handles(engine)
    assert strangers(engine, proven) == []
    # The inverse: without the proofs the products are strangers.
    assert len(strangers(engine, set())) > 10
    engine.close()
