"""`samebits bench gemm`: every matrix product of some models on a GPU, in the contract's fixed order, against
`torch.mm`, which is cuBLAS with every freedom (split-K among them). Interleaved, over weights that miss the cache."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samebits.bench.facts import machine, write_result
from samebits.bench.plotting import check_plotting
from samebits.errors import ConfigError
from samebits.numerics.gpu.buckets import buckets_up_to

LARGEST_ROWS, LARGEST_LOGIT_ROWS = 8192, 256
TIMED_ROUNDS = 11

Say = Callable[[str], None]


@dataclass(frozen=True)
class Matrix:
    """One kind of weight matrix, and the models that have it."""

    columns: int
    depth: int
    names: tuple[str, ...]
    logits: bool = False

    @property
    def title(self) -> str:
        return f"{self.columns} x {self.depth}"


MATRICES = (
    Matrix(6144, 4096, ("Qwen3-8B qkv", "Llama-3.1-8B qkv")),
    Matrix(4096, 4096, ("Qwen3-8B attention output", "Llama-3.1-8B attention output")),
    Matrix(24576, 4096, ("Qwen3-8B gate and up",)),
    Matrix(4096, 12288, ("Qwen3-8B down",)),
    Matrix(28672, 4096, ("Llama-3.1-8B gate and up",)),
    Matrix(4096, 14336, ("Llama-3.1-8B down",)),
    Matrix(10240, 5120, ("Qwen3-32B qkv",)),
    Matrix(5120, 8192, ("Qwen3-32B attention output",)),
    Matrix(51200, 5120, ("Qwen3-32B gate and up",)),
    Matrix(5120, 25600, ("Qwen3-32B down",)),
    Matrix(151936, 4096, ("Qwen3-8B logits",), logits=True),
    Matrix(128256, 4096, ("Llama-3.1-8B logits",), logits=True),
    Matrix(151936, 5120, ("Qwen3-32B logits",), logits=True),
)


@dataclass(frozen=True)
class Measured:
    """What one GPU found for a matrix."""

    matrix: Matrix
    products: list[dict[str, Any]]
    gpu: dict[str, str]
    ceilings: dict[str, float]


def run(
    output: Path, matrices: Sequence[Matrix] = MATRICES, gpus: int = 1, say: Say = print
) -> dict[str, Any]:
    """Prove, tune and measure on the first `gpus` GPUs, which take a matrix at a time; write the figures to `output`
    after each and return them. A product and `torch.mm` are always timed on the same GPU. Raises `ConfigError` where
    there are fewer GPUs."""
    found = torch.cuda.device_count()
    if found < gpus:
        raise ConfigError(
            f"samebits bench gemm measures kernels of {gpus} GPU(s), and there are {found} here"
        )
    from samebits.numerics.gpu.tuner import LEAST_REPLAYS

    begin = time.monotonic()
    compile_kernels(matrices, say)
    total = sum(len(buckets_of(matrix)) for matrix in matrices)
    done: list[Measured] = []
    result: dict[str, Any] = {}
    for measured in measured_matrices(matrices, gpus):
        done.append(measured)
        done.sort(key=lambda part: matrices.index(part.matrix))
        products = [entry for part in done for entry in part.products]
        say(
            f"{time.monotonic() - begin:.0f} s: {len(products)} of {total} products; {measured.matrix.title}, "
            f"{', '.join(measured.matrix.names)}"
        )
        result = {
            "benchmark": "gemm",
            **machine(),
            "gpu": done[0].gpu,
            "gpus": gpus,
            "ceilings": done[0].ceilings,
            "against": "torch.mm with split-K allowed, bf16; logits with float32 results",
            "timing": f"up to {TIMED_ROUNDS} turns of both, at least {LEAST_REPLAYS} where they are long, medians",
            "summary": summary(products),
            "products": products,
        }
        write_result(output, result)
    return result


def compile_kernels(matrices: Sequence[Matrix], say: Say) -> None:
    """Compile every candidate, for all processes."""
    from samebits.numerics.gpu.bindings import compile_all
    from samebits.numerics.gpu.gemm_operator import GemmOperator

    operator = GemmOperator(torch.device("cuda", torch.cuda.current_device()))
    sources = {
        source: None
        for matrix in matrices
        for source in operator.sources(problem_of(matrix), buckets_of(matrix))
    }
    say(f"compiling {len(sources)} kernels")
    compile_all(sources, lambda stage, done, total: None)


def measured_matrices(matrices: Sequence[Matrix], gpus: int) -> Iterator[Measured]:
    """What the GPUs find, as they find it: one in this process, several in a process each."""
    heaviest_first = sorted(matrices, key=weight_of, reverse=True)
    if gpus == 1:
        yield from map(measure_matrix, heaviest_first)
        return
    context = multiprocessing.get_context("spawn")
    free: multiprocessing.Queue[int] = context.Queue()
    for index in range(gpus):
        free.put(index)
    with ProcessPoolExecutor(gpus, context, initializer=take_gpu, initargs=(free,)) as pool:
        waiting = [pool.submit(measure_matrix, matrix) for matrix in heaviest_first]
        for finished in as_completed(waiting):
            yield finished.result()


def weight_of(matrix: Matrix) -> int:
    """What a matrix costs to measure, next to others."""
    return matrix.columns * matrix.depth * sum(buckets_of(matrix))


def take_gpu(free: multiprocessing.Queue[int]) -> None:
    """The GPU of a process that measures."""
    torch.cuda.set_device(free.get())


def measure_matrix(matrix: Matrix) -> Measured:
    """Every bucket of a matrix on this process's GPU."""
    from samebits.numerics.gpu.device_key import device_key
    from samebits.numerics.gpu.gemm_operator import GemmOperator
    from samebits.numerics.gpu.roofline import measure_ceilings

    device = torch.device("cuda", torch.cuda.current_device())
    operator, problem = GemmOperator(device), problem_of(matrix)
    ceilings = measure_ceilings(device)
    products = []
    for item in operator.rounds(problem, buckets_of(matrix)):
        entry = {"matrix": matrix.title, "names": matrix.names, **measure(operator, problem, item)}
        share = ceilings.share(entry["seconds"], entry["bytes"], entry["operations"])
        products.append({**entry, "share": share})
    return Measured(matrix, products, device_key(device), ceilings.as_dict())


def problem_of(matrix: Matrix) -> Any:
    from samebits.numerics.gpu.gemm_problem import GemmProblem

    out = torch.float32 if matrix.logits else torch.bfloat16
    return GemmProblem(matrix.columns, matrix.depth, torch.bfloat16, out)


def buckets_of(matrix: Matrix) -> tuple[int, ...]:
    return buckets_up_to(LARGEST_LOGIT_ROWS if matrix.logits else LARGEST_ROWS)


def measure(operator: Any, problem: Any, item: Any) -> dict[str, Any]:
    """Bind one shape and bucket, then time what was bound and `torch.mm` in turns."""
    from samebits.numerics.gpu.tuner import bind, interleaved_seconds

    bound = bind(operator, problem, item)
    alone = replace(item.workload(), between=None)
    ours, theirs = interleaved_seconds([bound.candidate, free_product(problem)], alone, TIMED_ROUNDS)
    return {
        "rows": item.bucket,
        "seconds": ours,
        "torch_mm_seconds": theirs,
        "ratio": theirs / ours,
        "bytes": bound.bytes,
        "operations": bound.operations,
        "chosen": bound.candidate.name,
        "identity": bound.candidate.identity,
        "tried": len(bound.tried),
        "rejected": [f"{entry.name}: {entry.rejection}" for entry in bound.tried if entry.seconds is None],
    }


def free_product(problem: Any) -> Any:
    """`torch.mm`: cuBLAS as torch calls it, which may split K and choose by M as it likes."""
    from samebits.numerics.gpu.prover import Candidate

    def mm(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        if problem.out is problem.act:
            torch.mm(inputs[0], inputs[1].T, out=outputs[0])
        else:
            torch.mm(inputs[0], inputs[1].T, out_dtype=problem.out, out=outputs[0])

    return Candidate("torch.mm", "", mm)


def summary(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means over all products and over bands of rows, and every product that is behind."""
    behind = sorted((entry for entry in measured if entry["ratio"] < 1.0), key=lambda entry: entry["ratio"])
    return {
        "products": len(measured),
        "geometric_mean": geometric_mean(entry["ratio"] for entry in measured),
        "geometric_mean_by_rows": {
            f"{low} to {high}": geometric_mean(
                entry["ratio"] for entry in measured if low <= entry["rows"] <= high
            )
            for low, high in BANDS
        },
        "least": min(entry["ratio"] for entry in measured),
        "under_0.9": [word_of(entry) for entry in behind if entry["ratio"] < 0.9],
        "under_1": [word_of(entry) for entry in behind],
    }


BANDS = ((1, 16), (32, 64), (96, 256), (384, 1024), (1536, 8192))


def geometric_mean(ratios: Iterator[float]) -> float:
    logarithms = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def word_of(entry: dict[str, Any]) -> str:
    return f"{entry['matrix']} at {entry['rows']} rows: {entry['ratio']:.3f}x ({entry['chosen']})"


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """One line a product: what serves, its rate, and the ratio to `torch.mm`."""
    rows: list[tuple[str, ...]] = [
        ("matrix", "rows", "candidate", "us", "TB/s", "TFLOP/s", "of roofline", "ratio")
    ]
    for entry in result["products"]:
        rows.append(
            (
                entry["matrix"],
                str(entry["rows"]),
                entry["chosen"],
                f"{entry['seconds'] * 1e6:.1f}",
                f"{entry['bytes'] / entry['seconds'] / 1e12:.2f}",
                f"{entry['operations'] / entry['seconds'] / 1e12:.0f}",
                f"{entry['share']:.0%}",
                f"{entry['ratio']:.3f}x",
            )
        )
    return rows


def plot(result: dict[str, Any], path: Path) -> None:
    """Ratio to `torch.mm` over rows, one line a matrix. Needs matplotlib."""
    check_plotting()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    titles = dict.fromkeys(entry["matrix"] for entry in result["products"])
    for number, title in enumerate(titles):
        points = [entry for entry in result["products"] if entry["matrix"] == title]
        axes.plot(
            [point["rows"] for point in points],
            [point["ratio"] for point in points],
            linestyle="-" if number < 10 else "--",  # there are ten colours
            marker=".",
            label=title,
        )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("rows (M)")
    axes.set_ylabel("times as fast as torch.mm (split-K allowed)")
    axes.set_title(f"Fixed-order GEMM, bf16, {result['gpu']['device']}")
    axes.legend(fontsize="small", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
