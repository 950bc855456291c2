"""`samebits bench decode`: the time of a decode step, exact against the same engine with every freedom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from samebits.bench.device_engine import ABORT_STEPS, BenchEngine, gpu_facts, median_of, open_engine
from samebits.bench.facts import machine, write_result
from samebits.bench.plotting import check_plotting
from samebits.config import EngineConfig, ModelConfig
from samebits.models.load import read_model_files, weights_dtype
from samebits.models.spec import ModelSpec
from samebits.models.weights import expected_shapes

BATCHES = (256, 128, 64, 32, 8, 1)
"""Largest first: the surplus is aborted, so that prompts are computed once."""
PROMPT_TOKENS = 1024
EVERYBODY_AT_ONCE = 0
"""as `assumed_answer_tokens`: requests never end here, and their memory lasts for the steps that are measured. An
engine that foretold how long they may become would let most of a batch wait"""
WARM_STEPS = 6
TERABYTES_PER_SECOND = 4.4
"""What a large read of the H200 reaches; the floor of a step is its bytes over this."""
PEER = {
    "name": "vLLM 0.26.0, default mode, Qwen3-8B shape, 1,024-token prompts, one H200, measured in another run",
    "milliseconds": {1: 5.37, 8: 5.81, 32: 6.79, 64: 8.25, 128: 11.73, 256: 20.00},
    "batch-invariant milliseconds": {1: 19.57, 8: 20.08, 32: 19.53, 64: 17.85, 128: 15.93, 256: 23.53},
}


def floor_milliseconds(
    spec: ModelSpec, shapes: dict[str, tuple[int, ...]], batch: int, context: int, degree: int = 1
) -> float:
    """Bytes that each of `degree` ranks must read in a step (its weights but for the embedding, its KV) over the card's
    bandwidth."""
    weights = sum(math.prod(shape) for shape in shapes.values())
    if not spec.tied_embeddings:
        weights -= spec.vocabulary * spec.hidden
    heads = max(spec.heads.kv_heads // degree, 1)
    kv = 2 * spec.layers * heads * spec.heads.head_dim * context * batch
    return element_bytes(spec) * (weights / degree + kv) / TERABYTES_PER_SECOND / 1e9


def element_bytes(spec: ModelSpec) -> int:
    """Bytes of a weight, and on a GPU of a key's or a value's element."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return dtype.itemsize


def run(
    model: ModelConfig,
    engine: EngineConfig,
    profiles: Sequence[str],
    batches: Sequence[int],
    repeats: int,
    steps: int,
    output: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure every profile at every batch size, interleaved, and write `output`."""
    files = read_model_files(model)
    spec = replace(files.spec, dtype=weights_dtype(model, files))
    shapes = expected_shapes(spec, files.family.names)
    engines: dict[str, BenchEngine] = {}
    room = most_tokens(batches, ABORT_STEPS + WARM_STEPS + repeats * steps, engine.page_tokens)
    # Each takes its share of the memory.
    engine = replace(
        engine,
        max_running=max(batches),
        assumed_answer_tokens=EVERYBODY_AT_ONCE,
        kv_memory_mib=engine.kv_memory_mib or kv_mebibytes(spec, 1, room),
    )
    for profile in profiles:
        say(f"starting {profile}")
        engines[profile] = open_engine(replace(model, numerics=profile, device="cuda"), engine, say)
        engines[profile].decode_together(max(batches), PROMPT_TOKENS)
    rows = []
    for batch in sorted(batches, reverse=True):
        measured: dict[str, list[dict[str, float]]] = {profile: [] for profile in profiles}
        for one in engines.values():
            one.keep(batch)
            one.timed_steps(WARM_STEPS)
        for _ in range(repeats):
            for profile, one in engines.items():
                measured[profile].append(one.timed_steps(steps))
        context = len(engines[profiles[0]].engine.scheduler.running[0].tokens)
        rows.append(row_of(batch, context, measured, floor_milliseconds(spec, shapes, batch, context)))
        say(str(rows[-1]["milliseconds"]))
    result = {
        "benchmark": "decode",
        **machine(),
        **gpu_facts(),
        "model": model.model,
        "prompt tokens": PROMPT_TOKENS,
        "steps": steps,
        "repeats": repeats,
        "assumed answer tokens": EVERYBODY_AT_ONCE,
        "start seconds": {profile: round(one.start_seconds, 2) for profile, one in engines.items()},
        "peer": PEER["name"],
        "batches": rows,
    }
    for one in engines.values():
        one.close()
    write_result(output, result)
    return result


def most_tokens(batches: Sequence[int], steps: int, page_tokens: int) -> int:
    """The most tokens that requests hold together, of which ever fewer go on for `steps` more; in pages, and a page for
    each that it may be given ahead."""
    rounds = enumerate(sorted(batches, reverse=True), start=1)
    return max(
        batch * (-(-(PROMPT_TOKENS + 1 + number * steps) // page_tokens) + 1) * page_tokens
        for number, batch in rounds
    )


def kv_mebibytes(spec: ModelSpec, batch: int, tokens: int) -> int:
    """Room for `tokens` of each request."""
    return -(-element_bytes(spec) * 2 * spec.layers * spec.heads.kv_width * tokens * batch >> 20)


def row_of(
    batch: int, context: int, measured: dict[str, list[dict[str, float]]], floor: float
) -> dict[str, Any]:
    """The figures of one batch size."""
    wall = {profile: round(median_of(rounds, "wall"), 4) for profile, rounds in measured.items()}
    row = {
        "batch": batch,
        "context": context,
        "milliseconds": wall,
        "idle share": {
            profile: round(median_of(rounds, "idle") / median_of(rounds, "wall"), 4)
            for profile, rounds in measured.items()
        },
        "floor milliseconds": round(floor, 3),
        "rounds": measured,
        "peer milliseconds": PEER["milliseconds"].get(batch),  # type: ignore[attr-defined]
    }
    if {"exact", "unpinned"} <= set(wall):
        row["speed against unpinned"] = round(wall["unpinned"] / wall["exact"], 4)
    return row


def plot(result: dict[str, Any], path: Path) -> None:
    """Milliseconds a step over the batch size, beside the floor and the peer. Raises `ConfigError` without
    matplotlib."""
    check_plotting()
    from matplotlib.figure import Figure

    rows = sorted(result["batches"], key=lambda row: row["batch"])
    batches = [row["batch"] for row in rows]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for profile in rows[0]["milliseconds"]:
        axes.plot(
            batches, [row["milliseconds"][profile] for row in rows], marker="o", label=f"samebits {profile}"
        )
    peer: dict[str, dict[int, float]] = {
        "vLLM 0.26.0, default": PEER["milliseconds"],  # type: ignore[dict-item]
        "vLLM 0.26.0, batch-invariant": PEER["batch-invariant milliseconds"],  # type: ignore[dict-item]
    }
    for label, values in peer.items():
        axes.plot(list(values), list(values.values()), marker=".", linestyle="--", label=label)
    axes.plot(
        batches,
        [row["floor milliseconds"] for row in rows],
        color="black",
        linewidth=0.8,
        label=f"bytes of a step at {TERABYTES_PER_SECOND} TB/s",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests decoding")
    axes.set_ylabel("milliseconds a step")
    axes.set_title(
        f"Decode at about {result['prompt tokens']} tokens of context, {result['model']}, {result['gpu']}"
    )
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Milliseconds a step, for people."""
    profiles = list(result["batches"][0]["milliseconds"])
    head = (
        "batch",
        *(f"{profile} ms" for profile in profiles),
        "exact/unpinned",
        "idle",
        "floor ms",
        "peer ms",
    )
    rows: list[tuple[str, ...]] = [head]
    for row in result["batches"]:
        rows.append(
            (
                str(row["batch"]),
                *(f"{row['milliseconds'][profile]:.3f}" for profile in profiles),
                f"{row.get('speed against unpinned', float('nan')):.3f}x",
                f"{100 * row['idle share'][profiles[0]]:.1f} %",
                f"{row['floor milliseconds']:.2f}",
                str(row["peer milliseconds"] or ""),
            )
        )
    return rows
