"""`samebits bench offline`: throughput against transformers, interleaved in one run, with the machine's floors.

The floors say what the hardware allows: decode cannot be faster than reading the weights once a step, prefill
not faster than its multiplications at the rate of `torch.mm`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from samebits.bench.contenders import (
    Contender,
    Samebits,
    TransformersOneByOne,
    TransformersPadded,
    load_transformers,
)
from samebits.bench.facts import copy_rate, machine, multiply_rate, seconds_of, spread, write_result
from samebits.config import ModelConfig
from samebits.llm import LLM
from samebits.models.load import read_model_files, weights_dtype
from samebits.models.spec import ModelSpec
from samebits.models.weights import expected_shapes

PAUSE_SECONDS = 0.3
"""Between two runs: the threads of the library that ran last spin for a while and would slow the next."""
CONCURRENT = 16
PREFILL_TOKENS = 2048


@dataclass(frozen=True)
class Workload:
    """A piece of greedy work that every contender does."""

    name: str
    prompt_tokens: tuple[int, ...]
    """length of each prompt"""
    new_tokens: int
    counts_prompt: bool
    """whether throughput counts prompt tokens, as in a prefill, or new ones"""
    rivals: tuple[str, ...]
    """which contenders run beside Samebits"""

    @property
    def tokens(self) -> int:
        return sum(self.prompt_tokens) if self.counts_prompt else self.new_tokens * len(self.prompt_tokens)

    def prompts(self, vocabulary: int, repeat: int) -> list[list[int]]:
        """Random prompts, others at each repeat, so that no prefix cache can help."""
        source = random.Random(f"{self.name} {repeat}")
        return [[source.randrange(vocabulary) for _ in range(length)] for length in self.prompt_tokens]


def workloads(decode_tokens: int) -> list[Workload]:
    mixed_lengths = tuple(16 + 8 * (7 * place % CONCURRENT) for place in range(CONCURRENT))
    return [
        Workload("decode, batch 1", (16,), decode_tokens, False, ("transformers",)),
        Workload(
            f"{CONCURRENT} concurrent requests",
            mixed_lengths,
            decode_tokens,
            False,
            ("transformers", "transformers padded"),
        ),
        Workload(f"prefill of {PREFILL_TOKENS} tokens", (PREFILL_TOKENS,), 1, True, ("transformers",)),
    ]


@dataclass(frozen=True)
class Options:
    """How much to measure."""

    repeats: int = 5
    decode_tokens: int = 32
    threads: int = 2


def race(
    contenders: dict[str, Contender], workload: Workload, vocabulary: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each contender at each repeat, interleaved, the order turning round every time."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        prompts = workload.prompts(vocabulary, repeat)
        order = list(contenders.items())
        for name, contender in order if repeat % 2 else reversed(order):
            time.sleep(PAUSE_SECONDS)
            taken = seconds_of(partial(contender.run, prompts, workload.new_tokens))
            if repeat:  # the first round warms up
                seconds[name].append(taken)
    return seconds


def floor_tokens_per_second(
    workload: Workload, spec: ModelSpec, bytes_per_weight: int, copy: float, multiply: float
) -> float:
    """The most tokens a second that memory (decode) or multiplications (prefill) allow."""
    weights = step_weights(spec)
    if workload.counts_prompt:
        length = workload.prompt_tokens[0]
        attention = 4 * spec.layers * spec.heads.query_width * length / 2
        return multiply / (2 * (weights - spec.vocabulary * spec.hidden) + attention)
    steps_bound = copy / (weights * bytes_per_weight) * len(workload.prompt_tokens)
    return min(steps_bound, multiply / (2 * weights))


def step_weights(spec: ModelSpec) -> int:
    """Weights that one decode step reads: all matrices, the output layer, but no table of embeddings."""
    heads = spec.heads
    attention = spec.hidden * (2 * heads.query_width + 2 * heads.kv_width)
    return spec.layers * (attention + 3 * spec.hidden * spec.intermediate) + spec.vocabulary * spec.hidden


def bench_model(config: ModelConfig, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """All workloads on one model; returns the figures."""
    torch.set_num_threads(options.threads)
    say(f"{config.model}: loading")
    rival = load_transformers(config)
    files = read_model_files(config)
    measured: dict[str, dict[str, list[float]]] = {}
    copies, multiplies = [copy_rate()], [multiply_rate()]
    with open_samebits(config, options.threads) as llm:
        contenders: dict[str, Contender] = {
            "samebits": Samebits(llm),
            "transformers": TransformersOneByOne(rival),
            "transformers padded": TransformersPadded(rival),
        }
        for workload in workloads(options.decode_tokens):
            say(f"{config.model}: {workload.name}")
            chosen = {name: contenders[name] for name in ("samebits", *workload.rivals)}
            measured[workload.name] = race(chosen, workload, files.spec.vocabulary, options.repeats)
            copies.append(copy_rate())
            multiplies.append(multiply_rate())
        facts = llm.facts
    copy, multiply = max(copies), max(multiplies)
    dtype: torch.dtype = getattr(torch, weights_dtype(config, files))
    rows = [
        figures(
            workload,
            measured[workload.name],
            floor_tokens_per_second(workload, files.spec, dtype.itemsize, copy, multiply),
        )
        for workload in workloads(options.decode_tokens)
    ]
    return {
        "model": config.model,
        "load_format": config.load_format,
        "fingerprint": facts.fingerprint,
        "profile": facts.profile,
        "threads": options.threads,
        "repeats": options.repeats,
        "weights": sum(_size(shape) for shape in expected_shapes(files.spec, files.family.names).values()),
        "copy_bytes_per_second": copy,
        "multiply_flop_per_second": multiply,
        "workloads": rows,
    }


def open_samebits(config: ModelConfig, threads: int) -> LLM:
    settings = asdict(config) | {"device": "cpu", "threads": threads}
    return LLM(settings.pop("model"), **settings)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def figures(workload: Workload, seconds: dict[str, list[float]], floor: float) -> dict[str, Any]:
    """Throughputs, and our ratio to each rival out of the same repeats."""
    ours = seconds["samebits"]
    return {
        "workload": workload.name,
        "prompt_tokens": list(workload.prompt_tokens),
        "new_tokens": workload.new_tokens,
        "counted_tokens": workload.tokens,
        "seconds": {name: values for name, values in seconds.items()},
        "tokens_per_second": {
            name: spread([workload.tokens / value for value in values]) for name, values in seconds.items()
        },
        "ratio_to": {
            name: spread([theirs / our for theirs, our in zip(values, ours, strict=True)])
            for name, values in seconds.items()
            if name != "samebits"
        },
        "floor_tokens_per_second": floor,
    }


def table_rows(models: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Model, workload, our and their throughput, ratios, and how near the floor we are."""
    rows: list[tuple[str, ...]] = [
        ("model, workload", "samebits", "transformers", "padded", "ratio", "to padded", "of the floor")
    ]
    for model in models:
        for row in model["workloads"]:
            rate = {name: value["median"] for name, value in row["tokens_per_second"].items()}
            ratio = {name: value["median"] for name, value in row["ratio_to"].items()}
            padded = rate.get("transformers padded")
            rows.append(
                (
                    f"{model['model']}, {row['workload']}",
                    f"{rate['samebits']:.1f} tok/s",
                    f"{rate['transformers']:.1f} tok/s",
                    f"{padded:.1f} tok/s" if padded else "",
                    f"{ratio['transformers']:.2f}x",
                    f"{ratio['transformers padded']:.2f}x" if padded else "",
                    f"{100 * rate['samebits'] / row['floor_tokens_per_second']:.0f} %",
                )
            )
    return rows


def run(
    work: Sequence[tuple[ModelConfig, Options]], output: Path, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure every model, write the figures to `output`, return them."""
    result = {
        "benchmark": "offline",
        **machine(),
        "models": [bench_model(config, options, say) for config, options in work],
    }
    write_result(output, result)
    return result
