"""`samebits bench admission`: what it is worth to foretell memory before a request is admitted.

The real scheduler serves loads whose lengths are known, over a model of time: a step takes as long as steps of
Qwen3-8B take on an H200 by `results/decode-h200.json` and `results/prefill-h200.json`, within a few per cent. So
minutes of a card are served in seconds on any machine, and exactly: the same load gives the same figures. Beside the
rule of `schedule/foresight.py` stands the one without it, which admits whoever fits at the moment.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from samebits.bench.facts import machine, write_result
from samebits.bench.load.report import percentile
from samebits.bench.loads import conversations
from samebits.cache.pages import PagePool
from samebits.config import EngineConfig
from samebits.sampling_params import ResolvedSampling
from samebits.schedule.foresight import Foresight
from samebits.schedule.messages import EngineRequest
from samebits.schedule.request import Request, new_request
from samebits.schedule.scheduler import Chunk, Scheduler, SchedulerLimits

KV_TOKENS = 792_320
"""what an H200 has room for beside Qwen3-8B in bf16"""
PAGE_TOKENS = 64
STEP_TOKENS = 8192
CONTEXT = 40_960

STEP_SECONDS = 4.1e-3
ROW_SECONDS = 13.6e-6
CONTEXT_SECONDS = 35e-9
"""of each token that a row of decoding looks back at"""
PROMPT_SECONDS = 21.9e-6
PROMPT_CONTEXT_SECONDS = 1.07e-9

RULES: dict[str, Callable[[], Foresight | None]] = {
    "fits at the moment": lambda: None,
    "foretold": lambda: Foresight(EngineConfig.assumed_answer_tokens),
}


@dataclass(frozen=True)
class Visit:
    """One request of a load."""

    arrival: float
    """seconds after the load begins"""
    prompt_tokens: int
    answer_tokens: int
    """after which the answer ends by itself"""
    most_tokens: int
    """what the request allows"""


@dataclass(frozen=True)
class AdmissionLoad:
    """Requests in the order in which they come."""

    name: str
    visits: tuple[Visit, ...]
    max_running: int = 256
    kv_tokens: int = KV_TOKENS
    """that there is room for"""


@dataclass
class Served:
    """What became of a load."""

    seconds: float = 0.0
    steps: int = 0
    preemptions: int = 0
    wanted_tokens: int = 0
    """of prompts and answers, each once; an answer's last token is not computed"""
    computed_tokens: int = 0
    first_tokens: dict[str, float] = field(default_factory=dict)
    """seconds from the arrival, by rid"""
    ends: dict[str, float] = field(default_factory=dict)
    longest_pause: float = 0.0
    """seconds from one token of a request to its next"""

    def facts(self) -> dict[str, Any]:
        """For a result."""
        first, ends = sorted(self.first_tokens.values()), list(self.ends.values())
        return {
            "seconds": round(self.seconds, 2),
            "steps": self.steps,
            "preemptions": self.preemptions,
            "tokens computed again": self.computed_tokens - self.wanted_tokens,
            "total tokens per second": round((self.wanted_tokens + len(ends)) / self.seconds, 1),
            "first token": {"median": round(median(first), 3), "p99": round(percentile(first, 99), 3)},
            "mean seconds of a request": round(mean(ends), 2),
            "longest pause": round(self.longest_pause, 2),
        }


def loads() -> tuple[AdmissionLoad, ...]:
    """The loads of the benchmark."""
    return (
        AdmissionLoad("256 of 4k/4k at once", (Visit(0.0, 4096, 4096, 4096),) * 256),
        AdmissionLoad("512 of 4k/4k, one a second", _one_by_one(512, 1.0, lambda _: (4096, 4096, 4096))),
        AdmissionLoad("256 of 8k/8k at once", (Visit(0.0, 8192, 8192, 8192),) * 256),
        AdmissionLoad("1,024 of 500 tokens that may take 32k", _one_by_one(1024, 1e9, _short_answer)),
        AdmissionLoad("the same, 12 a second", _one_by_one(1024, 12.0, _short_answer)),
        AdmissionLoad("2,048 conversations that may take 8k", _conversations(2048), max_running=2048),
        AdmissionLoad("three bursts of 128, 1k to 8k tokens", _bursts()),
        AdmissionLoad("256 of 4k/4k among 256 of 1k/16", _interleaved()),
        AdmissionLoad(
            "100 of 1k/1k, room for 72,000 tokens", (Visit(0.0, 1024, 1024, 1024),) * 100, kv_tokens=72_000
        ),
        AdmissionLoad("100 of 1k/1k, room for 9,000", (Visit(0.0, 1024, 1024, 1024),) * 100, kv_tokens=9000),
        AdmissionLoad(
            "400 of 100 tokens that may take 16k, room for 36,000",
            (Visit(0.0, 256, 100, 16_384),) * 400,
            kv_tokens=36_000,
        ),
    )


def _one_by_one(
    number: int, rate: float, lengths: Callable[[random.Random], tuple[int, int, int]]
) -> tuple[Visit, ...]:
    """So many visits, `rate` of them a second, of (prompt, answer, most) tokens."""
    source = random.Random(1)
    arrival, visits = 0.0, []
    for _ in range(number):
        arrival += source.expovariate(rate)
        visits.append(Visit(arrival, *lengths(source)))
    return tuple(visits)


def _short_answer(source: random.Random) -> tuple[int, int, int]:
    return source.randrange(1000, 5000), round(500 * source.lognormvariate(0.0, 0.3)), 32_768


def _conversations(number: int) -> tuple[Visit, ...]:
    """The lengths of `samebits bench serving`'s conversations, answers four times as long."""
    drawn = conversations(number).requests
    return tuple(Visit(0.0, one.prompt_tokens, 4 * one.new_tokens, 8192) for one in drawn)


def _bursts() -> tuple[Visit, ...]:
    source = random.Random(2)
    return tuple(
        Visit(minute * 60.0, 2048, source.randrange(1024, 8192), 8192)
        for minute in range(3)
        for _ in range(128)
    )


def _interleaved() -> tuple[Visit, ...]:
    return (Visit(0.0, 1024, 16, 16), Visit(0.0, 4096, 4096, 4096)) * 256


def run(output: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Serve every load under both rules, and write `output`."""
    rows: list[dict[str, Any]] = []
    for load in loads():
        served = {name: serve(load, make()).facts() for name, make in RULES.items()}
        facts = {"load": load.name, "requests": len(load.visits), "kv tokens": load.kv_tokens}
        rows.append({**facts, **served})
        say(load.name)
    time_model = {
        "a step": STEP_SECONDS,
        "a row of decoding": ROW_SECONDS,
        "a token it looks back at": CONTEXT_SECONDS,
        "a token of a prompt": PROMPT_SECONDS,
        "each it looks back at": PROMPT_CONTEXT_SECONDS,
    }
    result = {
        "benchmark": "admission",
        "machine": machine(),
        "seconds by the model": time_model,
        "loads": rows,
    }
    write_result(output, result)
    return result


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """For people: two lines a load."""
    rows: list[tuple[str, ...]] = [
        (
            "load",
            "rule",
            "preempted",
            "computed again",
            "tokens/s",
            "first token s",
            "p99",
            "whole s",
            "pause s",
        )
    ]
    for row in result["loads"]:
        for name in RULES:
            found = row[name]
            rows.append(
                (
                    row["load"],
                    name,
                    str(found["preemptions"]),
                    str(found["tokens computed again"]),
                    f"{found['total tokens per second']:.0f}",
                    f"{found['first token']['median']:.1f}",
                    f"{found['first token']['p99']:.1f}",
                    f"{found['mean seconds of a request']:.0f}",
                    f"{found['longest pause']:.1f}",
                )
            )
    return rows


def serve(load: AdmissionLoad, foresight: Foresight | None) -> Served:
    """Serve a load to its end, foretelling memory by `foresight` or not at all."""
    limits = SchedulerLimits(STEP_TOKENS, load.max_running, PAGE_TOKENS, -(-CONTEXT // PAGE_TOKENS))
    scheduler = Scheduler(limits, PagePool(load.kv_tokens // PAGE_TOKENS), foresight)
    served = Served(wanted_tokens=sum(one.prompt_tokens + one.answer_tokens - 1 for one in load.visits))
    coming = deque(enumerate(load.visits))
    last: dict[str, float] = {}
    while coming or scheduler.running or scheduler.waiting_count:
        if not scheduler.running and not scheduler.waiting_count:
            served.seconds = max(served.seconds, coming[0][1].arrival)
        while coming and coming[0][1].arrival <= served.seconds:
            scheduler.add(_request(*coming.popleft()))
        chunks = scheduler.schedule()
        assert chunks, "requests are left and nothing is done"
        scheduler.launch(chunks)
        served.seconds += seconds_of(chunks)
        served.steps += 1
        for chunk in chunks:
            served.computed_tokens += chunk.count
            scheduler.settle(chunk)
            if chunk.samples:
                _take_token(chunk.request, load.visits[chunk.request.arrival], served, last)
            if chunk.request.rid in served.ends:
                scheduler.finish(chunk.request)
    served.preemptions = scheduler.preemptions
    return served


def _take_token(request: Request, visit: Visit, served: Served, last: dict[str, float]) -> None:
    """A step has sampled the next token of a request. `last` is when each got its last one."""
    request.unread -= 1
    request.tokens.append(0)
    served.first_tokens.setdefault(request.rid, served.seconds - visit.arrival)
    pause = served.seconds - last.get(request.rid, served.seconds)
    served.longest_pause = max(served.longest_pause, pause)
    last[request.rid] = served.seconds
    if request.output_length == visit.answer_tokens:
        served.ends[request.rid] = served.seconds - visit.arrival


def _request(number: int, visit: Visit) -> Request:
    spec = EngineRequest(
        rid=str(number),
        prompt_ids=[0] * visit.prompt_tokens,
        sampling=ResolvedSampling(max_new_tokens=visit.most_tokens),
        use_prefix_cache=False,
    )
    return new_request(spec, number, frozenset(), CONTEXT)


def seconds_of(chunks: Sequence[Chunk]) -> float:
    """How long a step of these chunks takes by the model of time."""
    seconds = STEP_SECONDS
    for chunk in chunks:
        if chunk.count == 1:
            seconds += ROW_SECONDS + CONTEXT_SECONDS * chunk.end
        else:
            looked_at = (chunk.start + chunk.end) / 2
            seconds += chunk.count * (PROMPT_SECONDS + PROMPT_CONTEXT_SECONDS * looked_at)
    return seconds
