"""`samebits bench prefill`: prompt tokens a second through the engine on a GPU, `exact` beside other profiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from samebits.bench.decode import kv_mebibytes
from samebits.bench.device_engine import BenchEngine, open_engine
from samebits.bench.device_serving import gpu_machine, serve, start_facts
from samebits.bench.facts import write_result
from samebits.bench.gauge import gauged
from samebits.bench.loads import uniform
from samebits.bench.plotting import check_plotting
from samebits.bench.prefill_ceiling import library_facts
from samebits.config import EngineConfig, ModelConfig
from samebits.models.load import read_model_files, weights_dtype
from samebits.models.spec import ModelSpec
from samebits.models.weights import expected_shapes

PROMPTS = (1024, 2048)
ROUND_TOKENS = 65_536
"""Prompt tokens of one round, at least."""
PEER = {
    "name": "vLLM 0.26.0, Qwen3-8B shape, one H200, measured in another run",
    "default tokens per second": 42_600,
    "batch-invariant tokens per second": 34_200,
}


def operations_of_token(spec: ModelSpec, shapes: dict[str, tuple[int, ...]], prompt_tokens: int) -> float:
    """Floating-point operations of the products and the attention of one token of a prompt, logits of its last token
    alone among them."""
    weights = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    vocabulary = spec.vocabulary * spec.hidden
    weights -= vocabulary * (1 if spec.tied_embeddings else 2)
    attention = 4 * spec.layers * spec.heads.query_width * (prompt_tokens + 1) / 2
    return 2 * weights + attention + 2 * vocabulary / prompt_tokens


def run(
    model: ModelConfig,
    engine: EngineConfig,
    profiles: Sequence[str],
    repeats: int,
    output: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Tokens a second of prompts alone, profiles in turns: each request samples one token. `output` is written anew
    after every length, once more with what the library alone does."""
    files = read_model_files(model)
    spec = replace(files.spec, dtype=weights_dtype(model, files))
    shapes = expected_shapes(spec, files.family.names)
    engines: dict[str, BenchEngine] = {}
    if len(profiles) > 1 and not engine.kv_memory_mib:
        # Each takes its share of the memory: the prompts of two rounds.
        engine = replace(engine, kv_memory_mib=kv_mebibytes(spec, 2, ROUND_TOKENS))
    for profile in profiles:
        say(f"starting {profile}")
        engines[profile] = open_engine(replace(model, device="cuda", numerics=profile), engine, say)
    rows: list[dict[str, Any]] = []
    starts = [start_facts(opened) for opened in engines.values()]
    step_tokens = engines[profiles[0]].engine.scheduler.limits.step_tokens
    result = {
        "benchmark": "prefill",
        **gpu_machine(model),
        "step tokens": step_tokens,
        "starts": starts,
        "peer": PEER,
        "prefill": rows,
    }
    for tokens in PROMPTS:
        count = prompts_of_round(tokens, step_tokens)
        with gauged() as readings:
            rounds = measure(engines, tokens, count, repeats)
        operations = operations_of_token(spec, shapes, tokens)
        row = (
            row_of(tokens, rounds, operations)
            | {"prompts a round": count, "products per second": product_rate()}
            | readings.facts()
        )
        row["floor tokens per second"] = row["products per second"] / operations
        rows.append(row)
        say(line_of(row))
        write_result(output, result)
        if model.tensor_parallel == 1:  # the library's own figure is of the whole model on one GPU
            rows[-1] = beside_library(row, library_facts(spec, tokens, step_tokens, say))
            write_result(output, result)
    for opened in engines.values():
        opened.close()
    return result


def prompts_of_round(tokens: int, step_tokens: int) -> int:
    """How many prompts of so many tokens fill whole steps: the rest of a last step would cost time and count for
    nothing. As many as a round needs where no small number does."""
    whole = math.lcm(tokens, step_tokens)
    least = -(-ROUND_TOKENS // tokens)
    return -(-ROUND_TOKENS // whole) * whole // tokens if whole <= 2 * ROUND_TOKENS else least


def measure(engines: dict[str, BenchEngine], tokens: int, count: int, repeats: int) -> dict[str, list[float]]:
    """Tokens a second of each profile's rounds of `count` prompts, of which the first warms up."""
    rates: dict[str, list[float]] = {profile: [] for profile in engines}
    for repeat in range(repeats + 1):
        load = uniform("prefill", count, tokens, 1)
        for profile, opened in engines.items():
            found = serve(opened, load, first=count * repeat + 100_000 * tokens)
            rates[profile].append(count * tokens / found["seconds"])
    return rates


def row_of(tokens: int, rounds: dict[str, list[float]], operations: float) -> dict[str, Any]:
    """The figures of one length."""
    rates = {profile: median(found[1:]) for profile, found in rounds.items()}
    row: dict[str, Any] = {
        "prompt tokens": tokens,
        "tokens per second": rates,
        "rounds": rounds,
        "operations a token": operations,
    }
    if {"exact", "unpinned"} <= set(rates):
        row["speed against unpinned"] = round(rates["exact"] / rates["unpinned"], 4)
    return row


def beside_library(row: dict[str, Any], library: dict[str, Any]) -> dict[str, Any]:
    """The row with the library's own figures, where there are any, and with each profile's share of them."""
    if not library:
        return row
    most = library["library tokens per second"]
    shares = {profile: round(rate / most, 4) for profile, rate in row["tokens per second"].items()}
    return row | library | {"share of library": shares}


def product_rate() -> float:
    """Operations a second of the library's products of a prompt, under the load of one after another."""
    size, turns = 8192, 60
    left, right = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    for turn in range(2 * turns):
        if turn == turns:
            marks[0].record()
        torch.mm(left, right.t(), out=out)
    marks[1].record()
    marks[1].synchronize()
    return 2 * size**3 * turns / (marks[0].elapsed_time(marks[1]) / 1e3)


def line_of(row: dict[str, Any]) -> str:
    """A length's figures in one line."""
    rates = ", ".join(f"{profile} {rate:.0f}" for profile, rate in row["tokens per second"].items())
    return f"{row['prompt tokens']}: {rates} tokens/s"


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """For people."""
    profiles = list(result["prefill"][0]["tokens per second"])
    rows: list[tuple[str, ...]] = [
        (
            "prompt",
            *(f"{profile} tokens/s" for profile in profiles),
            "exact/unpinned",
            "floor",
            "library",
            f"{profiles[0]}/library",
            "MHz",
            "W",
        )
    ]
    for row in result["prefill"]:
        rows.append(
            (
                str(row["prompt tokens"]),
                *(f"{row['tokens per second'][profile]:.0f}" for profile in profiles),
                f"{row['speed against unpinned']:.3f}x" if "speed against unpinned" in row else "",
                f"{row['floor tokens per second']:.0f}",
                f"{row['library tokens per second']:.0f}" if "library tokens per second" in row else "",
                f"{row['share of library'][profiles[0]]:.3f}x" if "share of library" in row else "",
                f"{row.get('median MHz', float('nan')):.0f}",
                f"{row.get('median W', float('nan')):.0f}",
            )
        )
    return rows


def plot(result: dict[str, Any], path: Path) -> None:
    """Tokens a second by length, beside the floor, the library alone and the peer. Raises `ConfigError` without
    matplotlib."""
    check_plotting()
    from matplotlib.figure import Figure

    rows = result["prefill"]
    names = [str(row["prompt tokens"]) for row in rows]
    bars = [
        (f"samebits {profile}", [row["tokens per second"][profile] for row in rows])
        for profile in rows[0]["tokens per second"]
    ]
    bars += [
        ("vLLM 0.26.0, default", [PEER["default tokens per second"]] * len(rows)),
        ("vLLM 0.26.0, batch-invariant", [PEER["batch-invariant tokens per second"]] * len(rows)),
        ("operations at the library's rate", [row["floor tokens per second"] for row in rows]),
    ]
    alone = [row.get("library tokens per second", math.nan) for row in rows]
    if not all(map(math.isnan, alone)):
        bars.append(("library's products and attention alone", alone))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for number, (label, values) in enumerate(bars):
        axes.bar([place + number * width for place in range(len(rows))], values, width, label=label)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(rows))], names)
    axes.set_xlabel("tokens of a prompt")
    axes.set_ylabel("prompt tokens a second")
    axes.set_title(f"Prefill, {result['model']}, {result['gpu']}")
    axes.legend(fontsize="small", loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
