"""`samebits bench serving`: whole batches of requests through the engine on a GPU, `exact` beside other profiles.

All requests of a load come at once. What is measured is the engine, without HTTP: time to first token and between
tokens are counted where the engine hands tokens out.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from samebits.bench.device_engine import BenchEngine, gpu_facts, long_request, open_engine
from samebits.bench.facts import machine, write_result
from samebits.bench.load.report import percentile
from samebits.bench.loads import Asking, Load, uniform
from samebits.bench.plotting import check_plotting
from samebits.config import EngineConfig, ModelConfig
from samebits.engine.messages import AbortRequest, EngineRequest

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
WARM_UP = uniform("warm-up", 8, 256, 16)


def run(
    model: ModelConfig,
    engine: EngineConfig,
    profiles: Sequence[str],
    loads: Sequence[Load],
    output: Path,
    say: Callable[[str], None],
    most_seconds: float = math.inf,
) -> dict[str, Any]:
    """Each load once under each profile, for at most so many seconds, after a short one that warms up. One profile has
    the card at a time, so that each has the KV memory that a server would have. `output` is written anew after every
    load."""
    rows: list[dict[str, Any]] = []
    starts: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for profile in profiles:
        say(f"starting {profile}")
        one = open_engine(replace(model, device="cuda", numerics=profile), engine, say)
        starts.append(start_facts(one))
        serve(one, WARM_UP, first=1_000_000)
        for number, load in enumerate(loads):
            found = serve(one, load, 10_000 * number, most_seconds)
            rows.append({"profile": profile, **load.facts(), **found})
            say(line_of(rows[-1]))
            result = {"benchmark": "serving", **gpu_machine(model), "starts": starts, "loads": rows}
            write_result(output, result)
        one.close()
        del one
        gc.collect()
        torch.cuda.empty_cache()
    return result


def asked(number: int, lengths: Asking, vocabulary: int) -> EngineRequest:
    """Request `number`, with a prompt that shares nothing with the others'."""
    request = long_request(number, lengths.prompt_tokens, vocabulary, 1.0)
    sampling = msgspec.structs.replace(request.sampling, max_new_tokens=lengths.new_tokens)
    return msgspec.structs.replace(request, sampling=sampling, use_prefix_cache=False)


def serve(opened: BenchEngine, load: Load, first: int, most_seconds: float = math.inf) -> dict[str, Any]:
    """Submit everything, run to the end, or for `most_seconds`: what has not ended by then is aborted, and only what
    was computed counts. `first` is the number of the first request."""
    engine = opened.engine
    opened.runner.busy_and_idle()
    preemptions = engine.scheduler.preemptions
    vocabulary = engine.facts.vocabulary
    requests = [
        asked(number, lengths, vocabulary) for number, lengths in enumerate(load.requests, start=first)
    ]
    started = time.perf_counter()
    for request in requests:
        engine.submit(request)
    begun: dict[str, float] = {}
    last: dict[str, float] = {}
    gaps: list[float] = []
    steps = new_tokens = ended = 0
    while engine.has_work() and time.perf_counter() - started < most_seconds:
        events = engine.step()
        now = time.perf_counter()
        steps += 1
        for event in events:
            ended += event.finish is not None
            if event.token_ids:
                new_tokens += len(event.token_ids)
                begun.setdefault(event.rid, now - started)
                if event.rid in last:
                    gaps.append(now - last[event.rid])
                last[event.rid] = now
    seconds = time.perf_counter() - started
    busy, idle = opened.runner.busy_and_idle()
    preemptions = engine.scheduler.preemptions - preemptions
    prompt_tokens = sum(len(request.prompt_ids) for request in requests if request.rid in begun)
    for left in engine.scheduler.requests():
        engine.abort(AbortRequest(rid=left.rid))
    while engine.has_work():
        engine.step()
    return {
        "requests that ended": ended,
        "seconds": seconds,
        "steps": steps,
        "preemptions": preemptions,
        "total tokens per second": (prompt_tokens + new_tokens) / seconds,
        "output tokens per second": new_tokens / seconds,
        "time to first token": percentiles(list(begun.values())),
        "inter-token seconds": percentiles(gaps),
        "idle share": idle / (busy + idle) if busy else 0.0,
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The shape of a distribution: `{"50": ..., "99": ...}`; empty without values."""
    ordered = sorted(values)
    return {str(share): percentile(ordered, share) for share in PERCENTILES} if ordered else {}


def start_facts(opened: BenchEngine) -> dict[str, Any]:
    """Of one engine, for a result."""
    facts = opened.engine.facts
    return {
        "profile": facts.profile,
        "kv tokens": facts.kv_tokens,
        "start seconds": round(opened.start_seconds, 2),
    }


def gpu_machine(model: ModelConfig) -> dict[str, Any]:
    """The machine, its card and the model, for a result."""
    return {**machine(), **gpu_facts(), "model": model.model}


def line_of(row: dict[str, Any]) -> str:
    """A load's figures in one line."""
    first, gap = row["time to first token"], row["inter-token seconds"]
    cut = "" if ended_all(row) else f" (cut after {row['seconds']:.0f} s: {row['requests that ended']} ended)"
    return (
        f"{row['profile']}, {row['requests']} of {row['name']}{cut}: {row['total tokens per second']:.0f} tokens/s "
        f"({row['output tokens per second']:.0f} of output), first token {first.get('50', math.nan):.2f} s "
        f"(p99 {first.get('99', math.nan):.2f}), between tokens {1e3 * gap.get('50', 0):.1f} ms "
        f"(p99 {1e3 * gap.get('99', 0):.1f}), idle {row['idle share']:.2%}"
    )


def ended_all(row: dict[str, Any]) -> bool:
    """Whether a load ran to its end."""
    return bool(row["requests that ended"] == row["requests"])


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """For people."""
    rows: list[tuple[str, ...]] = [
        ("load", "requests", "profile", "tokens/s", "output/s", "ttft s", "p99", "itl ms", "p99", "idle")
    ]
    for row in result["loads"]:
        first, gap = row["time to first token"], row["inter-token seconds"]
        rows.append(
            (
                row["name"],
                str(row["requests"])
                if ended_all(row)
                else f"{row['requests that ended']} of {row['requests']}",
                row["profile"],
                f"{row['total tokens per second']:.0f}",
                f"{row['output tokens per second']:.0f}",
                f"{first.get('50', math.nan):.2f}",
                f"{first.get('99', math.nan):.2f}",
                f"{1e3 * gap.get('50', 0):.1f}",
                f"{1e3 * gap.get('99', 0):.1f}",
                f"{row['idle share']:.2%}",
            )
        )
    return rows


def plot(result: dict[str, Any], path: Path) -> None:
    """Both latencies as distributions, a line a load and profile. Raises `ConfigError` without matplotlib."""
    check_plotting()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(f"{result['model']}, {result['gpu']}: requests that all come at once")
    panels: Any = figure.subplots(1, 2)
    for axis, name, factor, unit in (
        (panels[0], "time to first token", 1.0, "s"),
        (panels[1], "inter-token seconds", 1e3, "ms"),
    ):
        for row in result["loads"]:
            shares = row[name]
            values = [factor * value for value in shares.values()]
            label = f"{row['requests']} of {row['name']}, {row['profile']}"
            axis.plot(values, [int(share) for share in shares], marker=".", label=label)
        axis.set(
            title=name.removesuffix(" seconds"), xlabel=unit, ylabel="% of requests or tokens", xscale="log"
        )
        axis.set_ylim(0, 100)
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
