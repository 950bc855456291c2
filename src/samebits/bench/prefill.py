"""`samebits bench prefill`: prompt tokens a second through the engine on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from samebits.bench.device_engine import open_engine
from samebits.bench.device_serving import gpu_machine, serve, start_facts
from samebits.bench.facts import write_result
from samebits.bench.gauge import gauged
from samebits.bench.loads import uniform
from samebits.config import EngineConfig, ModelConfig

PROMPTS = (1024, 2048)
ROUND_TOKENS = 65_536
"""Prompt tokens of one round."""


def run(
    model: ModelConfig, engine: EngineConfig, repeats: int, output: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Tokens a second of prompts alone: each request samples one token."""
    rows = []
    opened = open_engine(replace(model, device="cuda"), engine, say)
    for tokens in PROMPTS:
        count = ROUND_TOKENS // tokens
        rates = []
        with gauged() as readings:
            for repeat in range(repeats + 1):
                load = uniform("prefill", count, tokens, 1)
                found = serve(opened, load, first=count * repeat + 100_000 * tokens)
                rates.append(count * tokens / found["seconds"])
        row = {"prompt tokens": tokens, "tokens per second": median(rates[1:]), "rounds": rates}
        rows.append(row | readings.facts())
        say(f"{tokens}: {median(rates[1:]):.0f} tokens/s")
    result = {"benchmark": "prefill", **gpu_machine(model), **start_facts(opened), "prefill": rows}
    opened.close()
    write_result(output, result)
    return result
