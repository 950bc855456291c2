"""`samebits bench kernels`: products and attention against torch in float32, interleaved, at a model's shapes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from samebits.bench import attention
from samebits.bench.facts import machine, seconds_of, write_result
from samebits.config import ModelConfig
from samebits.models.load import read_model_files
from samebits.models.spec import ModelSpec
from samebits.numerics.operators import Operators
from samebits.numerics.profiles import make_operators

ROWS = (1, 4, 16, 64, 256, 1024)
SHORTEST_SECONDS = 0.02
"""A measurement repeats its call until it has taken this long."""
PAUSE_SECONDS = 0.05
LARGEST_OUTPUT = 1 << 27
"""Bytes of float32 results beyond which a product is left out."""


def layer_products(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(out, in) features of the dense products of a layer, by name."""
    heads = spec.heads
    return {
        "qkv": (heads.query_width + 2 * heads.kv_width, spec.hidden),
        "attention output": (spec.hidden, heads.query_width),
        "gate and up": (2 * spec.intermediate, spec.hidden),
        "down": (spec.hidden, spec.intermediate),
    }


def shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(out, in) features of each kind of matrix, by name."""
    return layer_products(spec) | {"logits": (spec.vocabulary, spec.hidden)}


def measure(operators: Operators, out: int, width: int, rows: int, repeats: int) -> dict[str, float]:
    """Median seconds of ours (bfloat16 weights) and of torch.mm (float32), interleaved, and their ratio."""
    generator = torch.Generator().manual_seed(out * width + rows)
    weight = torch.randn(out, width, generator=generator)
    x = torch.randn(rows, width, generator=generator)
    packed = operators.pack_linear(weight.bfloat16())
    transposed = weight.T
    calls: list[Callable[[], object]] = [
        partial(operators.linear, x, packed),
        partial(torch.mm, x, transposed),
    ]
    times: list[list[float]] = [[], []]
    counts = [max(1, round(SHORTEST_SECONDS / max(1e-6, _warm(call)))) for call in calls]
    for _ in range(repeats):
        for call, count, taken in zip(calls, counts, times, strict=True):
            time.sleep(PAUSE_SECONDS)
            taken.append(seconds_of(partial(_repeat, call, count)) / count)
    ours, theirs = (statistics.median(taken) for taken in times)
    ratios = [their / our for our, their in zip(*times, strict=True)]
    return {"samebits_seconds": ours, "torch_mm_seconds": theirs, "ratio": statistics.median(ratios)}


def _warm(call: Callable[[], object]) -> float:
    call()
    return seconds_of(call)


def _repeat(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def run(
    config: ModelConfig, repeats: int, threads: int, output: Path, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure every matrix of a model's shape, write the figures to `output`, return them."""
    torch.set_num_threads(threads)
    spec = read_model_files(config).spec
    operators = make_operators(config.numerics, "cpu", threads)
    measured = []
    for name, (out, width) in shapes(spec).items():
        say(f"{config.model}: {name}, {out} x {width}")
        for rows in (rows for rows in ROWS if 4 * rows * out <= LARGEST_OUTPUT):
            figures = measure(operators, out, width, rows, repeats)
            rate = 2 * rows * out * width / figures["samebits_seconds"] / 1e9
            measured.append(
                {"matrix": name, "out": out, "in": width, "rows": rows, "gflops": rate, **figures}
            )
    result = {
        "benchmark": "kernels",
        **machine(),
        "model": config.model,
        "profile": config.numerics,
        "threads": threads,
        "repeats": repeats,
        "products": measured,
        "attention": attention.run(operators, spec, repeats),
    }
    write_result(output, result)
    return result


def table_rows(products: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("matrix", "out x in", "rows", "GFLOP/s", "torch.mm GFLOP/s", "ratio")]
    for entry in products:
        operations = 2 * entry["rows"] * entry["out"] * entry["in"]
        rows.append(
            (
                entry["matrix"],
                f"{entry['out']} x {entry['in']}",
                str(entry["rows"]),
                f"{entry['gflops']:.1f}",
                f"{operations / entry['torch_mm_seconds'] / 1e9:.1f}",
                f"{entry['ratio']:.2f}x",
            )
        )
    return rows
