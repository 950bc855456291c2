"""`samebits bench scheduler`: what a step costs the host, and what the prefix cache costs, without any model.

A step is timed from outside, with a null model, whose own time is taken off: once by the wall clock, and once in
processor time, which tells better what the work costs where other processes share the cores. Half of every prompt is
shared by all requests. In `decode`, every running request takes one token a step and nobody comes or goes; in
`turnover`, answers are 16 tokens long, so that one request in 16 ends and another is admitted in each step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from samebits.bench.facts import machine, write_result
from samebits.bench.null_model import VOCABULARY, NullRunner, null_engine
from samebits.bench.trees import Tree, measure_tree, peer_tree, samebits_tree
from samebits.engine.engine import Engine
from samebits.engine.messages import EngineRequest
from samebits.sampling_params import ResolvedSampling

RUNNING = (1, 64, 256, 1024)
WAITING = 10_000
PROMPT_TOKENS = 256
TURNOVER_TOKENS = 16
STEP_TOKENS = 8192
AIM_MILLISECONDS = 1.0


@dataclass(frozen=True)
class Case:
    """How many requests run and wait, and whether they come and go."""

    running: int
    waiting: int
    kind: str
    """`decode` or `turnover`"""


def cases(running: Sequence[int] = RUNNING, waiting: int = WAITING) -> list[Case]:
    return [
        Case(number, queue, kind)
        for number in running
        for kind in ("decode", "turnover")
        for queue in ((0, waiting) if kind == "decode" else (waiting,))
    ]


def run(
    steps: int, repeats: int, peer: Path | None, output: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure everything `repeats` times, interleaved, and write `output`."""
    all_cases = cases()
    times: dict[Case, list[tuple[float, float]]] = {case: [] for case in all_cases}
    makers: list[Callable[[], Tree]] = [samebits_tree]
    if peer is not None:
        makers.append(lambda: peer_tree(peer))
    trees: dict[str, list[dict[str, float]]] = {}
    for repeat in range(repeats):
        for case in all_cases:
            times[case].append(milliseconds_a_step(case, steps))
        for make in makers:
            tree = make()
            trees.setdefault(tree.name, []).append(measure_tree(tree))
        say(f"round {repeat + 1} of {repeats}")
    result = {
        "machine": machine(),
        "steps": [_row(case, found) for case, found in times.items()],
        "tree": {
            name: {key: round(median(one[key] for one in rounds), 4) for key in rounds[0]}
            for name, rounds in trees.items()
        },
        "aim": f"{AIM_MILLISECONDS} ms a step at 256 running",
    }
    write_result(output, result)
    return result


def _row(case: Case, found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Medians of the rounds, and the least: whatever else runs on the cores, and in their caches, only adds."""
    wall, processor = zip(*found, strict=True)
    return {
        **vars(case),
        "milliseconds": round(median(wall), 4),
        "processor milliseconds": round(median(processor), 4),
        "least processor milliseconds": round(min(processor), 4),
        "least processor microseconds a running request": round(1000 * min(processor) / case.running, 3),
        "rounds": [[round(value, 4) for value in both] for both in found],
    }


def milliseconds_a_step(case: Case, steps: int) -> tuple[float, float]:
    """Median host time of a step (mean, where requests come and go): of the wall clock, and of the processor."""
    engine = loaded_engine(case, steps)
    runner = engine.runner
    assert isinstance(runner, NullRunner)
    wall, processor = [], []
    for _ in range(steps):
        wall_before, processor_before = runner.seconds, runner.processor_seconds
        start, start_processor = time.perf_counter(), time.process_time()
        engine.step()
        processor.append(time.process_time() - start_processor - runner.processor_seconds + processor_before)
        wall.append(time.perf_counter() - start - runner.seconds + wall_before)
    if case.kind == "decode":
        assert len(engine.scheduler.running) == case.running
    else:
        assert engine.scheduler.waiting_count, "nobody is left to admit"
    middle = median if case.kind == "decode" else mean
    return 1000 * middle(wall), 1000 * middle(processor)


def loaded_engine(case: Case, steps: int) -> Engine:
    """An engine past its prefills, with requests running and waiting as the case says."""
    pages = (case.running + 1) * (-(-(PROMPT_TOKENS + steps + 200) // 64) + 2)
    engine = null_engine(case.running, STEP_TOKENS, pages)
    source = random.Random(0)
    shared = [source.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS // 2)]
    # In `turnover` there must always be somebody left to admit.
    enough = case.running * (5 + steps // TURNOVER_TOKENS) if case.kind == "turnover" else 0
    for number in range(case.running + max(case.waiting, enough)):
        own = [source.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS - len(shared))]
        engine.submit(_request(f"request {number}", shared + own, case, number))
    # All prefills, and then some, so that in `turnover` the ends of the requests are spread.
    for _ in range(case.running * PROMPT_TOKENS // STEP_TOKENS + 2 * TURNOVER_TOKENS):
        engine.step()
    return engine


def _request(rid: str, prompt: list[int], case: Case, number: int) -> EngineRequest:
    # The first ones of `turnover` end one after another, so that the later ones keep on doing so.
    length = 100_000 if case.kind == "decode" else TURNOVER_TOKENS
    if case.kind == "turnover" and number < case.running:
        length = 2 + number % TURNOVER_TOKENS
    room = 64 * 128
    return EngineRequest(
        rid=rid,
        prompt_ids=prompt,
        sampling=ResolvedSampling(temperature=0.7, top_p=0.9, max_new_tokens=min(length, room)),
    )


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The result for people."""
    rows: list[tuple[str, ...]] = [
        ("step", "running", "waiting", "ms a step", "processor ms", "least", "µs a running request")
    ]
    for row in result["steps"]:
        rows.append(
            (
                row["kind"],
                str(row["running"]),
                str(row["waiting"]),
                f"{row['milliseconds']:.3f}",
                f"{row['processor milliseconds']:.3f}",
                f"{row['least processor milliseconds']:.3f}",
                f"{row['least processor microseconds a running request']:.2f}",
            )
        )
    return rows


def tree_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The trees' figures for people."""
    names = list(result["tree"])
    keys = list(next(iter(result["tree"].values())))
    return [("prefix cache", *names)] + [
        (key, *(f"{result['tree'][name][key]:.3f}" for name in names)) for key in keys
    ]
