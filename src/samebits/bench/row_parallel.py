"""`samebits bench row-parallel`: what the balanced tree of `tp-invariant` costs in the products that it serves.

Each row-parallel matrix is cut as a rank would hold it at several degrees of tensor parallelism. The tree gives float32
sums where another rank's leaves are still to be added; the chain, which is what the default profile runs there, gives
the activation type. Both are proven, tuned and then timed in turns, over weights that miss the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samebits.bench.facts import machine, write_result
from samebits.bench.gemm import BANDS, TIMED_ROUNDS, Matrix, Say, geometric_mean
from samebits.errors import ConfigError

ROWS = (1, 16, 64, 128, 256, 1024, 4096)
DEGREES = (1, 2, 4)
MATRICES = (
    Matrix(4096, 4096, ("Qwen3-8B attention output",)),
    Matrix(4096, 12288, ("Qwen3-8B down",)),
    Matrix(5120, 8192, ("Qwen3-32B attention output",)),
    Matrix(5120, 25600, ("Qwen3-32B down",)),
)


def run(
    output: Path,
    matrices: Sequence[Matrix] = MATRICES,
    degrees: Sequence[int] = DEGREES,
    rows: Sequence[int] = ROWS,
    say: Say = print,
) -> dict[str, Any]:
    """Prove, tune and measure; write the figures to `output` and return them. Raises `ConfigError` without a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("samebits bench row-parallel measures kernels of a GPU, and there is none here")
    from samebits.numerics.gpu.bindings import compile_all
    from samebits.numerics.gpu.device_key import device_key
    from samebits.numerics.gpu.gemm_operator import GemmOperator
    from samebits.numerics.gpu.tree_operator import TreeOperator

    device = torch.device("cuda", torch.cuda.current_device())
    chains, trees = GemmOperator(device), TreeOperator(device)
    work = [(matrix, degree, *problems_of(matrix, degree)) for matrix in matrices for degree in degrees]
    sources = [source for _, _, chain, tree in work for source in chains.sources(chain, rows)]
    sources += [source for _, _, chain, tree in work for source in trees.sources(tree, rows)]
    compile_all(sources, lambda stage, done, total: None)
    measured: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for matrix, degree, chain, tree in work:
        say(f"{matrix.title}, {degree} ranks: {', '.join(matrix.names)}")
        rounds = zip(chains.rounds(chain, rows), trees.rounds(tree, rows), strict=True)
        for one, other in rounds:
            figures = measure((chains, chain, one), (trees, tree, other))
            measured.append({"matrix": matrix.title, "names": matrix.names, "ranks": degree, **figures})
        result = {
            "benchmark": "row-parallel",
            **machine(),
            "gpu": device_key(device),
            "timing": f"up to {TIMED_ROUNDS} turns of both, medians; to 64 rows behind a short kernel, as they serve",
            "summary": summary(measured),
            "products": measured,
        }
        write_result(output, result)  # after every matrix, so that an interrupted run is not lost
    return result


def problems_of(matrix: Matrix, degree: int) -> tuple[Any, Any]:
    """(chain, tree) of one rank's share of a matrix."""
    from samebits.numerics.contract import CONTRACT
    from samebits.numerics.gpu.gemm_problem import GemmProblem
    from samebits.numerics.gpu.tree_operator import TreeProblem

    act, depth = torch.bfloat16, matrix.depth // degree
    out = act if degree == 1 else torch.float32
    return (
        GemmProblem(matrix.columns, depth, act, act),
        TreeProblem(matrix.columns, depth, CONTRACT.leaves // degree, act, out),
    )


def measure(chain: tuple[Any, Any, Any], tree: tuple[Any, Any, Any]) -> dict[str, Any]:
    """Bind both at one bucket, then time them in turns. Each is (operator, problem, round)."""
    from samebits.numerics.gpu.prover import Candidate
    from samebits.numerics.gpu.tuner import bind, interleaved_seconds

    one, other = bind(*chain), bind(*tree)

    def run_chain(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        """The chain writes where the tree does; what it does not need is left."""
        shape = outputs[0].shape
        room = outputs[0].view(-1).view(chain[1].out)[: shape.numel()]
        one.candidate.run(inputs, (room.view(shape),))

    both = [Candidate(one.candidate.name, "", run_chain), other.candidate]
    seconds = interleaved_seconds(both, tree[2].workload(), TIMED_ROUNDS)
    return {
        "rows": tree[2].bucket,
        "chain": one.candidate.name,
        "chain_seconds": seconds[0],
        "tree": other.candidate.name,
        "tree_seconds": seconds[1],
        "cost": seconds[1] / seconds[0],
        "tried": len(one.tried) + len(other.tried),
        "rejected": [
            f"{entry.name}: {entry.rejection}"
            for entry in (*one.tried, *other.tried)
            if entry.seconds is None
        ],
    }


def summary(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means of tree over chain by number of ranks and band of rows, and the dearest products."""
    return {
        f"{ranks} ranks": {
            f"{low} to {high}": geometric_mean(
                entry["cost"]
                for entry in measured
                if entry["ranks"] == ranks and low <= entry["rows"] <= high
            )
            for low, high in BANDS
        }
        for ranks in dict.fromkeys(entry["ranks"] for entry in measured)
    }


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """One line a product: both candidates, their times, and how much longer the tree takes."""
    rows: list[tuple[str, ...]] = [("matrix", "ranks", "rows", "chain", "us", "tree", "us", "tree / chain")]
    for entry in result["products"]:
        rows.append(
            (
                entry["matrix"],
                str(entry["ranks"]),
                str(entry["rows"]),
                entry["chain"],
                f"{entry['chain_seconds'] * 1e6:.1f}",
                entry["tree"],
                f"{entry['tree_seconds'] * 1e6:.1f}",
                f"{entry['cost']:.3f}",
            )
        )
    return rows
