"""The table of proven kernels, and what the commands say where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from samebits.bench import row_parallel
from samebits.bench.gemm import MATRICES, buckets_of, summary
from samebits.cli import main
from samebits.commands.kernel_table import lines
from samebits.numerics.gpu.proofs import ProofRecord, TriedRecord
from samebits.numerics.gpu.roofline import Ceilings

REASON = "case spread exponents, output 0 [3, 5]: 0x3f80 (1.0), expected 0x0000 (0.0)"
RECORD = ProofRecord(
    "gemm", "64x64 bf16 to bf16", 16, "tile a", "digest", 4_000_000, 200,
    (
        TriedRecord("tile a", "digest", 2e-6),
        TriedRecord("tile b", "other", None, REASON),
    ),
)  # fmt: skip


def test_the_table_shows_choice_share_and_rejections() -> None:
    shown = lines([RECORD], Ceilings(bytes_per_second=4e12, operations_per_second=1e14))
    assert shown[2].split() == [
        "gemm",
        "64x64",
        "bf16",
        "to",
        "bf16",
        "16",
        "2",
        "1",
        "tile",
        "a",
        "2.0",
        "50%",
    ]
    assert f"tile b: {REASON}" in shown[3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["info", "--kernels"], ["bench", "gemm"], ["bench", "row-parallel"]])
def test_without_a_gpu_the_commands_say_so(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) != 0
    assert "GPU" in capsys.readouterr().err


def test_the_benchmark_names_what_is_behind() -> None:
    entries = [
        {"ratio": ratio, "rows": rows, "matrix": "64 x 64", "chosen": "tile"}
        for ratio, rows in ((2.0, 1), (0.5, 64), (0.95, 8192))
    ]
    found = summary(entries)
    assert found["geometric_mean"] == pytest.approx(0.95 ** (1 / 3))
    assert found["least"] == 0.5
    assert found["under_0.9"] == ["64 x 64 at 64 rows: 0.500x (tile)"]
    assert len(found["under_1"]) == 2


def test_the_benchmark_covers_every_matrix_of_the_three_models() -> None:
    names = [name for matrix in MATRICES for name in matrix.names]
    assert len(names) == len(set(names)) == 15
    assert buckets_of(MATRICES[0])[-1] == 8192


def test_the_cost_of_trees_is_told_by_degree_and_rows() -> None:
    entries = [
        {"ranks": ranks, "rows": rows, "cost": 1.0 + 0.1 * ranks}
        for ranks in (1, 2)
        for rows in row_parallel.ROWS
    ]
    found = row_parallel.summary(entries)
    assert found["2 ranks"]["32 to 64"] == pytest.approx(1.2)
    assert found["1 ranks"]["1536 to 8192"] == pytest.approx(1.1)


def test_a_rank_of_the_benchmark_holds_its_share_of_the_leaves() -> None:
    pytest.importorskip("triton")
    for matrix in row_parallel.MATRICES:
        for ranks in row_parallel.DEGREES:
            chain, tree = row_parallel.problems_of(matrix, ranks)
            tree.check()
            assert chain.depth == tree.depth == matrix.depth // ranks
            assert tree.leaves * ranks == 8
            assert (tree.out == tree.act) == (ranks == 1)
