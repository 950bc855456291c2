"""`samebits bench prefill` and `bench serving`: prompts a second, and whole batches of requests through the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from samebits.bench.device_engine import BenchEngine, gpu_facts, long_request, open_engine
from samebits.bench.facts import machine, write_result
from samebits.config import EngineConfig, ModelConfig

PREFILL_PROMPTS = (1024, 2048)
PREFILL_TOKENS = 65_536
"""Prompt tokens of one round."""


@dataclass(frozen=True)
class Load:
    """Requests that all come at once."""

    name: str
    requests: int
    prompt_tokens: int
    new_tokens: int


LOADS = (
    Load("1k/256", 256, 1024, 256),
    Load("1k/1k", 256, 1024, 1024),
    Load("4k/4k", 64, 4096, 4096),
)


def run_prefill(
    model: ModelConfig, engine: EngineConfig, repeats: int, output: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Tokens a second of prompts alone."""
    rows = []
    opened = open_engine(replace(model, device="cuda"), engine, say)
    for tokens in PREFILL_PROMPTS:
        count = PREFILL_TOKENS // tokens
        rates = []
        for repeat in range(repeats + 1):
            load = Load("prefill", count, tokens, 1)
            found = serve(opened, load, offset=count * repeat + 100_000 * tokens)
            rates.append(count * tokens / found["seconds"])
        rows.append({"prompt tokens": tokens, "tokens per second": median(rates[1:]), "rounds": rates})
        say(f"{tokens}: {median(rates[1:]):.0f} tokens/s")
    opened.close()
    result = {"benchmark": "prefill", **_facts(model, opened), "prefill": rows}
    write_result(output, result)
    return result


def run_serving(
    model: ModelConfig, engine: EngineConfig, loads: Sequence[Load], output: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Each load once, after a short one that warms up."""
    opened = open_engine(replace(model, device="cuda"), engine, say)
    serve(opened, Load("warm-up", 8, 256, 16), offset=1_000_000)
    rows = []
    for number, load in enumerate(loads):
        rows.append(vars(load) | serve(opened, load, offset=10_000 * number))
        say(str(rows[-1]))
    opened.close()
    result = {"benchmark": "serving", **_facts(model, opened), "loads": rows}
    write_result(output, result)
    return result


def serve(opened: BenchEngine, load: Load, offset: int) -> dict[str, float]:
    """Submit everything, run to the end."""
    engine = opened.engine
    opened.runner.busy_and_idle()
    started = time.perf_counter()
    for number in range(load.requests):
        asked = long_request(offset + number, load.prompt_tokens, engine.facts.vocabulary, 1.0)
        sampling = msgspec.structs.replace(asked.sampling, max_new_tokens=load.new_tokens)
        engine.submit(msgspec.structs.replace(asked, sampling=sampling, use_prefix_cache=False))
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    gaps: list[float] = []
    while engine.has_work():
        events = engine.step()
        now = time.perf_counter()
        for event in events:
            if event.token_ids:
                first.setdefault(event.rid, now - started)
                if event.rid in last:
                    gaps.append(now - last[event.rid])
                last[event.rid] = now
    seconds = time.perf_counter() - started
    busy, idle = opened.runner.busy_and_idle()
    tokens = load.requests * (load.prompt_tokens + load.new_tokens)
    gaps.sort()
    return {
        "seconds": seconds,
        "total tokens per second": tokens / seconds,
        "output tokens per second": load.requests * load.new_tokens / seconds,
        "median time to first token": median(first.values()),
        "median inter-token seconds": gaps[len(gaps) // 2] if gaps else 0.0,
        "99th percentile inter-token seconds": gaps[len(gaps) * 99 // 100] if gaps else 0.0,
        "idle share": idle / (busy + idle) if busy else 0.0,
    }


def _facts(model: ModelConfig, opened: BenchEngine) -> dict[str, Any]:
    return {
        **machine(),
        **gpu_facts(),
        "model": model.model,
        "profile": opened.engine.facts.profile,
        "start seconds": round(opened.start_seconds, 2),
    }
