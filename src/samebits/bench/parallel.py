"""`samebits bench parallel`: decode steps and prompts of a model over several GPUs, beside what they must cost.

A decode step must read its rank's share of the weights and of keys and values, and sum twice a layer. Every contender
runs in a process of its own; those that are open at once are measured in turns. What was measured is written down at
once, so a run that is cut leaves a file that says so (`whole`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samebits.bench.all_reduce import microseconds_alone
from samebits.bench.decode import (
    EVERYBODY_AT_ONCE,
    PROMPT_TOKENS,
    WARM_STEPS,
    floor_milliseconds,
    kv_mebibytes,
)
from samebits.bench.device_engine import gpu_facts, median_of
from samebits.bench.engine_process import EngineProcess
from samebits.bench.facts import machine, write_result
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError
from samebits.models.load import read_model_files, weights_dtype
from samebits.models.spec import ModelSpec
from samebits.models.weights import expected_shapes

BATCHES = (1, 32, 128)
"""Smallest first: others join, so that prompts are computed once, and a small batch is measured soon."""
CONTEXT_TOKENS = 1408
"""Room for keys and values of a request, at least: its prompt and a token of every step."""
JOINING_TOKENS = 128
"""of that, for the steps in which others join, and a page that is given ahead"""
PREFILL_TOKENS = 1024
LEAST_PROMPTS, LEAST_STEPS = 8, 4
"""Prompts that are computed at a time: this many, and enough for this many full steps."""
TRACED_STEPS = 4
NAMED_KERNELS = 16
"""of a step of prompts"""
EXCHANGING = (
    "one_shot",
    "two_shot",
    "add_norm_shares",
    "gather_columns",
    "gather_rows",
    "all_gather",
    "meet_alone",
    "nccl",
)
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


@dataclass(frozen=True)
class Course:
    """How contenders are measured."""

    batches: Sequence[int]
    repeats: int
    steps: int
    """of a round"""
    prompt_steps: Sequence[int]
    """most tokens of a step while prompts are computed, each measured by itself"""
    at_once: int = 0
    """contenders that are open at the same time, where memory does not hold all of them (0: all)"""

    @property
    def context_tokens(self) -> int:
        """Room for the keys and values of the request that is there the longest."""
        steps = len(self.batches) * (WARM_STEPS + self.repeats * self.steps + TRACED_STEPS)
        return max(CONTEXT_TOKENS, PROMPT_TOKENS + steps + JOINING_TOKENS)

    def groups(self, contenders: Sequence[Contender]) -> list[Sequence[Contender]]:
        """Those that are measured in turns."""
        count = self.at_once or len(contenders)
        return [contenders[first : first + count] for first in range(0, len(contenders), count)]


@dataclass
class Measured:
    """What is known of the contenders so far, by their names."""

    spec: ModelSpec
    shapes: dict[str, tuple[int, ...]]
    """of the weights"""
    contenders: Sequence[Contender]
    starts: dict[str, EngineProcess] = field(default_factory=dict)
    prompts: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """by most tokens of a step"""
    batches: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    alone: dict[int, dict[str, float]] = field(default_factory=dict)
    """microseconds of one sum, by rows"""

    def figures(self) -> dict[str, Any]:
        """All of it, for the file."""
        return {
            "contenders": [one.name for one in self.contenders if one.name in self.starts],
            "start seconds": {name: round(one.start_seconds, 2) for name, one in self.starts.items()},
            "stages of the start, seconds": {name: one.stages for name, one in self.starts.items()},
            "microseconds of one sum alone": {str(rows): found for rows, found in self.alone.items()},
            "prompts": [_prompt_row(size, found) for size, found in self.prompts.items()],
            "batches": [self._row(batch) for batch in self.batches],
        }

    def _row(self, batch: int) -> dict[str, Any]:
        """The figures of one batch size."""
        found = self.batches[batch]
        wall = {name: median_of(figures["rounds"], "wall") for name, figures in found.items()}
        row: dict[str, Any] = {
            "batch": batch,
            "context": {name: figures["context"] for name, figures in found.items()},
            "milliseconds": {name: round(time, 4) for name, time in wall.items()},
            **against_first(wall),
        }
        parts: dict[str, dict[str, Any]] = {"floor milliseconds": {}, "exchange share": {}}
        parts |= {"exchanging kernels": {}, "rounds": {}}
        for one in (one for one in self.contenders if one.name in found):
            figures = found[one.name]
            read = floor_milliseconds(self.spec, self.shapes, batch, figures["context"], one.degree)
            floor = {"bytes": round(read, 3)}
            if one.degree == 1:
                floor["sums"] = 0.0
            elif batch in self.alone:
                floor["sums"] = round(2 * self.spec.layers * self.alone[batch][one.sums] / 1e3, 3)
            parts["floor milliseconds"][one.name] = floor
            parts["rounds"][one.name] = figures["rounds"]
            if kernels := figures.get("kernels"):
                share = exchanging(kernels) / sum(kernels.values())
                parts["exchange share"][one.name] = round(share, 4)
                parts["exchanging kernels"][one.name] = {
                    name: round(time, 4) for name, time in kernels.items() if exchanges(name)
                }
        return row | parts


def run(
    model: ModelConfig,
    engine: EngineConfig,
    contenders: Sequence[Contender],
    course: Course,
    output: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure every contender at every batch size; `output` is written anew after every figure."""
    degree = max(one.degree for one in contenders)
    groups = course.groups(contenders)
    files = read_model_files(model)
    spec = replace(files.spec, dtype=weights_dtype(model, files))
    measured = Measured(spec, expected_shapes(spec, files.family.names), contenders)
    result: dict[str, Any] = {
        "benchmark": "parallel",
        **machine(),
        **gpu_facts(),
        "gpus": degree,
        "model": model.model,
        "prompt tokens": PROMPT_TOKENS,
        "steps": course.steps,
        "repeats": course.repeats,
        "interleaved": [[one.name for one in group] for group in groups],
        "most tokens in a step": engine.step_tokens,
        "assumed answer tokens": EVERYBODY_AT_ONCE,
        "whole": False,
    }
    started = time.monotonic()

    def keep(line: str) -> None:
        result.update(measured.figures())
        write_result(output, result)
        say(f"[{time.monotonic() - started:5.1f} s] {line}")

    processes = {one.name: _process(one, model, engine, measured.spec, course) for one in contenders}
    try:
        for group in groups:
            measure({one.name: processes[one.name] for one in group}, course, measured, keep)
    finally:
        for process in processes.values():
            process.close()
    # Last, for it is the least that a run that is cut may lack.
    if degree > 1:
        measured.alone = microseconds_alone(degree, sorted(course.batches), measured.spec.hidden)
    result["whole"] = True
    keep("sums alone")
    return result


def _process(
    one: Contender, model: ModelConfig, engine: EngineConfig, spec: ModelSpec, course: Course
) -> EngineProcess:
    """A process for a contender, whose engine is to be opened."""
    largest = max(course.batches)
    memory = engine.kv_memory_mib or kv_mebibytes(spec, largest, course.context_tokens) // one.degree
    return EngineProcess(
        replace(model, numerics=one.profile, device="cuda", tensor_parallel=one.degree),
        replace(
            engine,
            max_running=largest,
            kv_memory_mib=memory,
            assumed_answer_tokens=EVERYBODY_AT_ONCE,
            all_reduce=one.method,
        ),
    )


def measure(
    opened: Mapping[str, EngineProcess], course: Course, measured: Measured, keep: Callable[[str], None]
) -> None:
    """Open these, measure them in turns, and close them. Each figure is handed to `keep` as it is found."""
    # One after another, for the start times kernels.
    for name, process in opened.items():
        process.open()
        measured.starts[name] = process
        keep(f"started {name}: {process.stages}")
    for size in course.prompt_steps:
        _measure_prompts(opened, size, course.repeats, measured.prompts.setdefault(size, {}), keep)
    running = 0
    for batch in sorted(course.batches):
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in opened}
        for process in opened.values():
            process.decode_together(batch - running, PROMPT_TOKENS)
            process.timed_steps(WARM_STEPS)
        running = batch
        for _ in range(course.repeats):
            for name, process in opened.items():
                rounds[name].append(process.timed_steps(course.steps))
        found = measured.batches.setdefault(batch, {})
        for name, process in opened.items():
            found[name] = {"context": process.context(), "rounds": rounds[name]}
            keep(f"batch {batch}, {name}: {median_of(rounds[name], 'wall'):.3f} ms")
        for name, process in opened.items():
            found[name]["kernels"] = process.kernel_milliseconds(TRACED_STEPS)
    keep("traced")
    for process in opened.values():
        process.close()


def _measure_prompts(
    opened: Mapping[str, EngineProcess],
    size: int,
    repeats: int,
    found: dict[str, dict[str, Any]],
    keep: Callable[[str], None],
) -> None:
    """Prompts alone, in steps of at most `size` tokens."""
    count = max(LEAST_PROMPTS, -(-LEAST_STEPS * size // PREFILL_TOKENS))
    for process in opened.values():
        process.prefill(count, PREFILL_TOKENS, size)  # what is made at the first call is not counted
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in opened}
    for _ in range(repeats):
        for name, process in opened.items():
            rounds[name].append(process.prefill(count, PREFILL_TOKENS, size))
    for name, process in opened.items():
        middle = sorted(rounds[name], key=lambda one: one["seconds"])[repeats // 2]
        kernels = process.prefill_kernels(count, PREFILL_TOKENS, size)
        found[name] = {
            "rate": count * PREFILL_TOKENS / middle["seconds"],
            "step": {
                "wall": 1e3 * middle["seconds"] / middle["steps"],
                "busy": middle["busy"],
                "queueing by the host": middle["queueing"],
                "computing kernels": sum(kernels.values()) - exchanging(kernels),
                "exchanging kernels": exchanging(kernels),
            },
            "kernels": longest(kernels),
            "seconds": [one["seconds"] for one in rounds[name]],
        }
        step = ", ".join(f"{part} {time:.1f}" for part, time in found[name]["step"].items())
        keep(f"steps of {size}, {name}: {found[name]['rate']:.0f} prompt tokens/s, ms a step: {step}")


def _prompt_row(size: int, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of prompts in steps of at most `size` tokens."""
    return {
        "most tokens in a step": size,
        "tokens per second": {name: round(one["rate"]) for name, one in found.items()},
        **against_first({name: 1 / one["rate"] for name, one in found.items()}),
        "milliseconds a step": {
            name: {part: round(time, 3) for part, time in one["step"].items()} for name, one in found.items()
        },
        "kernels, milliseconds a step": {name: one["kernels"] for name, one in found.items()},
        "seconds of a round": {
            name: [round(time, 4) for time in one["seconds"]] for name, one in found.items()
        },
    }


def against_first(times: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Times over that of the first contender."""
    first = next(iter(times))
    return {f"time against {first}": {name: round(time / times[first], 4) for name, time in times.items()}}


def exchanges(kernel: str) -> bool:
    """Whether ranks exchange values, or wait for each other, in a kernel of this name."""
    return any(part in kernel.lower() for part in EXCHANGING)


def exchanging(kernels: Mapping[str, float]) -> float:
    """Milliseconds in kernels in which ranks exchange values or wait for each other."""
    return sum(time for name, time in kernels.items() if exchanges(name))


def longest(kernels: Mapping[str, float]) -> dict[str, float]:
    """The kernels that take the most of a step."""
    return {
        name: round(kernels[name], 3)
        for name in sorted(kernels, key=lambda name: -kernels[name])[:NAMED_KERNELS]
    }


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """For people: one line a batch size and contender, and one for its prompts."""
    first = result["contenders"][0]
    rows: list[tuple[str, ...]] = [
        ("batch", "contender", "", f"time against {first}", "floor: bytes", "floor: sums", "exchanging")
    ]
    for row in result["batches"]:
        against: dict[str, float] = next(
            found for key, found in row.items() if key.startswith("time against")
        )
        for name, time_of in row["milliseconds"].items():
            floor, share = row["floor milliseconds"][name], row["exchange share"].get(name)
            rows.append(
                (
                    str(row["batch"]),
                    name,
                    f"{time_of:.3f} ms",
                    f"{against[name]:.3f}x",
                    f"{floor['bytes']:.2f}",
                    f"{floor['sums']:.2f}" if "sums" in floor else "",
                    "" if share is None else f"{100 * share:.1f} %",
                )
            )
    for row in result["prompts"]:
        against = next(found for key, found in row.items() if key.startswith("time against"))
        for name, rate in row["tokens per second"].items():
            size = row["most tokens in a step"]
            rows.append((f"prompts by {size}", name, f"{rate} tokens/s", f"{against[name]:.3f}x", "", "", ""))
    return rows
