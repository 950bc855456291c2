"""A covering table: circumstances that nobody can try in every combination, chosen so that every pair of them occurs.

Each row of the table is one batch under one engine. Every request of it is compared, token ids and the bits of every
logprob, with its own run alone. Where the KV pages do not hold a whole batch, its last requests
wait or are preempted, which changes no bit either.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samebits.sampling_params import SamplingParams
from samebits.tables import align
from samebits.verify.answers import Answer
from samebits.verify.modes import Settings, Tally, bare, base_sampling
from samebits.verify.target import Target

Levels = Mapping[str, tuple[Any, ...]]
FACTORS: Levels = {
    "batch": (1, 7, 64, 256),
    "prompt": (1, 129, 2048, 8192),
    "chunk": (512, 2048, 16384),
    "graph": (True, False),
    "cache": ("cold", "warm"),
    "temperature": (0.0, 1.0),
}
Row = Mapping[str, Any]
OpenTarget = Callable[[int, bool], Target]
"""From (most tokens of a step, whether decode steps are captured) to an engine."""


def pairs_of(row: Row, names: Sequence[str]) -> set[tuple[str, Any, str, Any]]:
    """Every pair of circumstances that occurs in a row."""
    return {(one, row[one], other, row[other]) for one, other in itertools.combinations(names, 2)}


def all_pairs(factors: Levels) -> set[tuple[str, Any, str, Any]]:
    """Every pair of circumstances that there is."""
    found = set()
    for one, other in itertools.combinations(factors, 2):
        found |= {(one, left, other, right) for left in factors[one] for right in factors[other]}
    return found


def covering_rows(factors: Levels) -> list[Row]:
    """Rows in which every pair occurs: again and again the row that holds most of the pairs still missing."""
    names = list(factors)
    candidates = [dict(zip(names, values, strict=True)) for values in itertools.product(*factors.values())]
    missing = all_pairs(factors)
    rows: list[Row] = []
    while missing:
        best = max(candidates, key=lambda row: len(missing & pairs_of(row, names)))
        rows.append(best)
        missing -= pairs_of(best, names)
    return rows


@dataclass(frozen=True)
class CoveringSettings:
    """What is asked in every row."""

    new_tokens: int = 8
    seed: int = 42


@dataclass(frozen=True)
class RowResult:
    """What came of one row."""

    row: Row
    tally: Tally
    cached_tokens: int
    seconds: float


@dataclass
class CoveringReport:
    """What came of the table."""

    model: str
    details: dict[str, str]
    results: list[RowResult] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.tally.equal for result in self.results)


def prompt_ids(number: int, length: int, vocabulary: int) -> list[int]:
    """Prompt `number`: no two are alike, and none is a prefix of another of the same length."""
    return [(7919 * (number + 1) + 31 * place + place * place // 7) % vocabulary for place in range(length)]


def sampling_of(number: int, temperature: float, settings: CoveringSettings) -> SamplingParams:
    own = Settings(max_new_tokens=settings.new_tokens, seed=settings.seed + number)
    return base_sampling(own, temperature)


def ask(
    target: Target, row: Row, numbers: Sequence[int], vocabulary: int, settings: CoveringSettings
) -> list[Answer]:
    """The requests of a row, together."""
    return target.generate(
        [prompt_ids(number, row["prompt"], vocabulary) for number in numbers],
        [sampling_of(number, row["temperature"], settings) for number in numbers],
    )


class SoloRuns:
    """Each request alone, computed when it is first asked for."""

    def __init__(self, target: Target, vocabulary: int, settings: CoveringSettings) -> None:
        self._target = target
        self._vocabulary = vocabulary
        self._settings = settings
        self._known: dict[tuple[int, int, float], Answer] = {}

    def answer(self, number: int, row: Row) -> Answer:
        key = (number, row["prompt"], row["temperature"])
        if key not in self._known:
            self._target.flush()
            self._known[key] = bare(ask(self._target, row, [number], self._vocabulary, self._settings)[0])
        return self._known[key]


def run(
    open_target: OpenTarget,
    vocabulary: int,
    settings: CoveringSettings,
    factors: Levels = FACTORS,
    say: Callable[[str], None] = print,
) -> CoveringReport:
    """Go through the table. Rows that share an engine stand together; the engine of the solo runs has chunks of the
    middle size."""
    rows = covering_rows(factors)
    solo_target = open_target(factors["chunk"][len(factors["chunk"]) // 2], True)
    solo = SoloRuns(solo_target, vocabulary, settings)
    facts = solo_target.facts()
    report = CoveringReport(facts.name, dict(facts.details))
    try:
        for chunk, graph in itertools.product(factors["chunk"], factors["graph"]):
            some = [row for row in rows if (row["chunk"], row["graph"]) == (chunk, graph)]
            if not some:
                continue
            for result in _run_rows(open_target, chunk, graph, solo, some, vocabulary, settings):
                report.results.append(result)
                say(line_of(result))
    finally:
        solo_target.close()
    return report


def _run_rows(
    open_target: OpenTarget,
    chunk: int,
    graph: bool,
    solo: SoloRuns,
    rows: Sequence[Row],
    vocabulary: int,
    settings: CoveringSettings,
) -> Iterator[RowResult]:
    """The rows of one engine, which is gone, with its memory, when they are done."""
    target = open_target(chunk, graph)
    try:
        for row in rows:
            yield _run_row(target, solo, row, vocabulary, settings)
    finally:
        target.close()


def _run_row(
    target: Target, solo: SoloRuns, row: Row, vocabulary: int, settings: CoveringSettings
) -> RowResult:
    started = time.monotonic()
    numbers = range(row["batch"])
    target.flush()
    if row["cache"] == "warm":
        ask(target, row, numbers, vocabulary, settings)
    answers = ask(target, row, numbers, vocabulary, settings)
    tally = Tally(name_of(row))
    for number, answer in zip(numbers, answers, strict=True):
        tally.samples += 1
        tally.add(solo.answer(number, row), bare(answer), f"member {number}")
    cached = sum(answer.cached_tokens or 0 for answer in answers)
    return RowResult(row, tally, cached, time.monotonic() - started)


def name_of(row: Row) -> str:
    """A row in words."""
    return (
        f"batch {row['batch']}, prompt {row['prompt']}, chunk {row['chunk']}, "
        f"{'graph' if row['graph'] else 'eager'}, {row['cache']}, temperature {row['temperature']:g}"
    )


def line_of(result: RowResult) -> str:
    verdict = "same bits" if result.tally.equal else f"DIFFERENT: {result.tally.difference}"
    return f"{name_of(result.row)}: {result.tally.answers} answers, {verdict} [{result.seconds:.1f} s]"


def table(report: CoveringReport) -> list[str]:
    """The table for people."""
    head = ("batch", "prompt", "chunk", "decode", "cache", "temperature", "answers", "cached", "differing")
    rows: list[tuple[str, ...]] = [head]
    for result in report.results:
        row = result.row
        rows.append(
            (
                str(row["batch"]),
                str(row["prompt"]),
                str(row["chunk"]),
                "graph" if row["graph"] else "eager",
                row["cache"],
                f"{row['temperature']:g}",
                str(result.tally.answers),
                str(result.cached_tokens),
                str(result.tally.differing),
            )
        )
    return align(rows)


def as_json(report: CoveringReport) -> dict[str, Any]:
    """The report for machines."""
    return {
        "model": report.model,
        "details": report.details,
        "passed": report.passed,
        "rows": [
            {
                **result.row,
                "answers": result.tally.answers,
                "differing": result.tally.differing,
                "cached tokens": result.cached_tokens,
                "seconds": round(result.seconds, 2),
            }
            for result in report.results
        ],
    }
