"""`samebits bench parallel`: decode steps and prompts of a model over several GPUs, beside what they must cost.

A decode step must read its rank's share of the weights and of keys and values, and sum twice a layer. Every contender
runs in a process of its own; those that are open at once are measured in turns.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samebits.bench.all_reduce import microseconds_alone
from samebits.bench.decode import PROMPT_TOKENS, TERABYTES_PER_SECOND, WARM_STEPS, kv_mebibytes
from samebits.bench.device_engine import gpu_facts, median_of
from samebits.bench.engine_process import EngineProcess
from samebits.bench.facts import machine, write_result
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError
from samebits.models.load import read_model_files
from samebits.models.spec import ModelSpec
from samebits.models.weights import expected_shapes

BATCHES = (128, 32, 1)
"""Largest first: the surplus is aborted, so that prompts are computed once."""
PREFILL_PROMPTS, PREFILL_TOKENS = 8, 1024
TRACED_STEPS = 4
EXCHANGING = ("one_shot", "two_shot", "gather_columns", "gather_rows", "all_gather", "meet_alone", "nccl")
"""Parts of the names of kernels in which ranks exchange values or wait for each other."""


@dataclass(frozen=True)
class Contender:
    """A profile at a degree, perhaps with one collective forced: `exact`, `exact@1`, `unpinned+one-shot`."""

    name: str
    profile: str
    degree: int
    method: str

    @property
    def sums(self) -> str:
        """Whose sums these are: `exact`, `tp-invariant` or `nccl`."""
        if self.profile != "unpinned":
            return self.profile
        return "nccl" if self.method in ("auto", "nccl") else "exact"


def contender(text: str, degree: int) -> Contender:
    """Read its name; `degree` is that of names without one. Raises `ConfigError`."""
    rest, _, own = text.partition("@")
    profile, _, method = rest.partition("+")
    if own and not own.isdigit():
        raise ConfigError(f"contender {text!r}: a degree follows the @")
    return Contender(text, profile, int(own or degree), method or "auto")


def floor_milliseconds(
    spec: ModelSpec, shapes: dict[str, tuple[int, ...]], batch: int, context: int, degree: int
) -> float:
    """Bytes that one rank must read in a step (its weights but for the embedding, its KV) over the bandwidth."""
    weights = sum(2 * math.prod(shape) for shape in shapes.values())
    if not spec.tied_embeddings:
        weights -= 2 * spec.vocabulary * spec.hidden
    heads = max(spec.heads.kv_heads // degree, 1)
    kv = 2 * 2 * spec.layers * heads * spec.heads.head_dim * context * batch
    return (weights / degree + kv) / TERABYTES_PER_SECOND / 1e9


def run(
    model: ModelConfig,
    engine: EngineConfig,
    contenders: Sequence[Contender],
    batches: Sequence[int],
    repeats: int,
    steps: int,
    at_once: int,
    output: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure every contender at every batch size and write `output`. `at_once`: how many are open at the same time,
    where memory does not hold all of them (0: all)."""
    files = read_model_files(model)
    spec, shapes = files.spec, expected_shapes(files.spec, files.family.names)
    degree = max(one.degree for one in contenders)
    say("sums alone")
    alone = microseconds_alone(degree, sorted(batches), spec.hidden) if degree > 1 else {}
    count = at_once or len(contenders)
    groups = [contenders[first : first + count] for first in range(0, len(contenders), count)]
    found: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {}

    def keep(figures: dict[str, dict[str, Any]]) -> None:
        """Write what there is: a later group may not fit into memory."""
        found.update(figures)
        measured = [one for one in contenders if one.name in found]
        rows = [_row(batch, measured, found, spec, shapes, alone) for batch in sorted(batches, reverse=True)]
        result.update(
            contenders=[one.name for one in measured],
            **{
                "start seconds": {name: one["start"] for name, one in found.items()},
                "prefill tokens per second": {name: one["prefill"] for name, one in found.items()},
            },
            batches=rows,
        )
        write_result(output, result)

    result |= {
        "benchmark": "parallel",
        **machine(),
        **gpu_facts(),
        "gpus": degree,
        "model": model.model,
        "prompt tokens": PROMPT_TOKENS,
        "steps": steps,
        "repeats": repeats,
        "interleaved": [[one.name for one in group] for group in groups],
        "most tokens in a step": engine.step_tokens or "chosen by the engine",
        "microseconds of one sum alone": {str(rows): figures for rows, figures in alone.items()},
    }
    for group in groups:
        _measure(group, model, engine, spec, batches, repeats, steps, keep, say)
    return result


def _measure(
    contenders: Sequence[Contender],
    model: ModelConfig,
    engine: EngineConfig,
    spec: ModelSpec,
    batches: Sequence[int],
    repeats: int,
    steps: int,
    keep: Callable[[dict[str, dict[str, Any]]], None],
    say: Callable[[str], None],
) -> None:
    """Hand figures by contender to `keep`; all of these are open at once, and take turns."""
    largest = max(batches)
    opened: dict[str, EngineProcess] = {}
    found: dict[str, dict[str, Any]] = {}
    try:
        # One after another, for the start times kernels.
        for one in contenders:
            say(f"starting {one.name}")
            memory = engine.kv_memory_mib or kv_mebibytes(spec, largest) // one.degree
            opened[one.name] = EngineProcess(
                replace(model, numerics=one.profile, device="cuda", tensor_parallel=one.degree),
                replace(engine, max_running=largest, kv_memory_mib=memory, all_reduce=one.method),
            )
            found[one.name] = {"start": round(opened[one.name].start_seconds, 2)}
        seconds: dict[str, list[float]] = {name: [] for name in opened}
        for _ in range(repeats + 1):
            for name, process in opened.items():
                seconds[name].append(process.prefill_seconds(PREFILL_PROMPTS, PREFILL_TOKENS))
        for name, process in opened.items():
            found[name]["prefill"] = round(
                PREFILL_PROMPTS * PREFILL_TOKENS / statistics.median(seconds[name][1:])
            )
            say(f"{name}: {found[name]['prefill']} prompt tokens/s")
            process.decode_together(largest, PROMPT_TOKENS)
        for batch in sorted(batches, reverse=True):
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in opened}
            for process in opened.values():
                process.keep(batch)
                process.timed_steps(WARM_STEPS)
            for _ in range(repeats):
                for name, process in opened.items():
                    rounds[name].append(process.timed_steps(steps))
            for name, process in opened.items():
                kernels = process.kernel_milliseconds(TRACED_STEPS)
                found[name][str(batch)] = {
                    "context": process.context(),
                    "rounds": rounds[name],
                    "exchanging": round(exchanging(kernels), 4),
                    "kernels": {
                        kernel: round(time, 4) for kernel, time in kernels.items() if exchanges(kernel)
                    },
                    "computing": round(sum(kernels.values()) - exchanging(kernels), 4),
                }
                say(f"batch {batch}, {name}: {median_of(rounds[name], 'wall'):.3f} ms")
        keep(found)
    finally:
        for process in opened.values():
            process.close()


def exchanges(kernel: str) -> bool:
    """Whether ranks exchange values, or wait for each other, in a kernel of this name."""
    return any(part in kernel.lower() for part in EXCHANGING)


def exchanging(kernels: dict[str, float]) -> float:
    """Milliseconds in kernels in which ranks exchange values or wait for each other."""
    return sum(time for name, time in kernels.items() if exchanges(name))


def _row(
    batch: int,
    contenders: Sequence[Contender],
    found: dict[str, dict[str, Any]],
    spec: ModelSpec,
    shapes: dict[str, tuple[int, ...]],
    alone: dict[int, dict[str, float]],
) -> dict[str, Any]:
    """The figures of one batch size."""
    row: dict[str, Any] = {"batch": batch}
    wall = {one.name: median_of(found[one.name][str(batch)]["rounds"], "wall") for one in contenders}
    row["milliseconds"] = {name: round(time, 4) for name, time in wall.items()}
    row["floor milliseconds"], row["exchange share"], row["exchanging kernels"], row["rounds"] = (
        {},
        {},
        {},
        {},
    )
    for one in contenders:
        figures = found[one.name][str(batch)]
        read = floor_milliseconds(spec, shapes, batch, figures["context"], one.degree)
        sums = 0.0
        if one.degree > 1:
            sums = 2 * spec.layers * alone[batch][one.sums] / 1e3
        row["floor milliseconds"][one.name] = {"bytes": round(read, 3), "sums": round(sums, 3)}
        traced = figures["exchanging"] + figures["computing"]
        row["exchange share"][one.name] = round(figures["exchanging"] / traced, 4) if traced else None
        row["exchanging kernels"][one.name] = figures["kernels"]
        row["rounds"][one.name] = figures["rounds"]
    first = contenders[0].name
    row[f"time against {first}"] = {name: round(time / wall[first], 4) for name, time in wall.items()}
    return row


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """For people: one line a batch size and contender."""
    first = result["contenders"][0]
    rows: list[tuple[str, ...]] = [
        ("batch", "contender", "ms a step", f"against {first}", "floor: bytes", "floor: sums", "exchanging")
    ]
    for row in result["batches"]:
        for name in result["contenders"]:
            floor, share = row["floor milliseconds"][name], row["exchange share"][name]
            rows.append(
                (
                    str(row["batch"]),
                    name,
                    f"{row['milliseconds'][name]:.3f}",
                    f"{row[f'time against {first}'][name]:.3f}x",
                    f"{floor['bytes']:.2f}",
                    f"{floor['sums']:.2f}",
                    "" if share is None else f"{100 * share:.1f} %",
                )
            )
    return rows
