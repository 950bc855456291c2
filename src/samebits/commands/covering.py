"""`samebits verify covering`: the covering table, with engines of its own."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any

from samebits.commands.flags import positive, quieten, settings_of
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError

MODE = "covering"
LEVELS = {"batches": "batch", "prompts": "prompt", "chunks": "chunk"}
HELP = {
    "batches": "requests of a batch",
    "prompts": "tokens of a prompt",
    "chunks": "most tokens of a step",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The levels that the table combines with graph and eager, cold and warm, temperature 0 and 1."""
    group = parser.add_argument_group("covering table")
    for flag, text in HELP.items():
        group.add_argument(f"--{flag}", type=positive, nargs="+", metavar="N", help=f"{text} to combine")


def is_asked_for(modes: Sequence[str]) -> bool:
    """Whether the command line names this mode. Raises `ConfigError` when it names others beside it."""
    if MODE in modes and set(modes) != {MODE}:
        raise ConfigError(f"'{MODE}' starts engines of its own: run it by itself")
    return MODE in modes


def run(options: argparse.Namespace) -> int:
    """Go through the table; exit status 1 where a bit differs."""
    from samebits.verify import covering

    if options.url:
        raise ConfigError(f"'{MODE}' starts engines in this process: leave --url out")
    quieten()
    factors = dict(covering.FACTORS)
    for flag, name in LEVELS.items():
        if getattr(options, flag):
            factors[name] = tuple(dict.fromkeys(getattr(options, flag)))
    settings = covering.CoveringSettings(options.max_new_tokens, options.seed)
    open_target, vocabulary = _opener(options, factors, settings)
    told = sys.stderr if options.json else sys.stdout
    say = functools.partial(print, file=told, flush=True)
    report = covering.run(open_target, vocabulary, settings, factors, say)
    if options.json:
        json.dump(machine_facts() | covering.as_json(report), sys.stdout, indent=2)
        print()
    else:
        print("\n" + "\n".join(covering.table(report)))
        print("\n" + ("Every bit was the same." if report.passed else "Bits differ."))
    return 0 if report.passed else 1


def machine_facts() -> dict[str, Any]:
    """The machine, for a report that is kept."""
    import torch

    from samebits.bench.device_engine import gpu_facts
    from samebits.bench.facts import machine

    return {"machine": machine()} | (gpu_facts() if torch.cuda.is_available() else {})


def _opener(options: argparse.Namespace, factors: Any, settings: Any) -> tuple[Any, int]:
    """What opens an engine of given sizes, and the model's vocabulary."""
    from samebits.llm import LLM
    from samebits.models.load import read_model_files
    from samebits.verify.local import LocalTarget

    model, engine = settings_of(options, ModelConfig), settings_of(options, EngineConfig)
    spec = read_model_files(model).spec
    longest = max(factors["prompt"]) + settings.new_tokens
    opened: list[int] = []

    def open_target(chunk: int, graph: bool) -> LocalTarget:
        changes: dict[str, Any] = {"step_tokens": chunk, "max_running": max(factors["batch"])}
        if not graph:
            changes["cuda_graph_max_bs"] = 0
        if not opened:  # the engine of the solo runs, which lives beside all others
            changes |= {"kv_pages": 2 * -(-longest // engine.page_tokens), "max_running": 1}
        opened.append(chunk)
        given: dict[str, Any] = dataclasses.asdict(model) | dataclasses.asdict(engine) | changes
        return LocalTarget(LLM(given.pop("model"), **given))

    return open_target, spec.vocabulary
