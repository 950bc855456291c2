"""The tuner: of the candidates that are proven at a shape and bucket, the fastest is bound.

It cannot change a bit. Timing is done in CUDA graphs over inputs that do not fit the cache together, the way
decode meets its weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from samebits.errors import NumericsError
from samebits.numerics.gpu.operator import Operator, Problem, Recipe, Round, Workload
from samebits.numerics.gpu.proofs import ProofRecord, TriedRecord
from samebits.numerics.gpu.prover import Candidate, Proof, Rejection, words_of

REPLAYS = 5
FINAL_REPLAYS = 15
CLOSE = 1.05
"""Candidates within this factor of the fastest are timed again, interleaved."""


@dataclass(frozen=True)
class Bound:
    """The candidate that serves one shape and bucket, and how it was chosen."""

    clause: str
    problem: str
    bucket: int
    candidate: Candidate
    tried: tuple[TriedRecord, ...]
    bytes: int
    operations: int

    def record(self) -> ProofRecord:
        """What the store keeps."""
        return ProofRecord(
            self.clause,
            self.problem,
            self.bucket,
            self.candidate.name,
            self.candidate.identity,
            self.bytes,
            self.operations,
            self.tried,
        )


class TimedGraph:
    """Runs of one candidate over all sets of a workload, captured."""

    def __init__(self, candidate: Candidate, workload: Workload) -> None:
        self.runs = len(workload.sets)
        self.graph = torch.cuda.CUDAGraph()
        for inputs, outputs in workload.sets:
            candidate.run(inputs, outputs)
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph):
            for inputs, outputs in workload.sets:
                candidate.run(inputs, outputs)
        self.graph.replay()

    def seconds(self) -> float:
        """Of one run; one replay between two events."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.runs


def median_seconds(candidate: Candidate, workload: Workload, replays: int = REPLAYS) -> float:
    """Median time of one run of a candidate."""
    graph = TimedGraph(candidate, workload)
    return statistics.median(graph.seconds() for _ in range(replays))


def interleaved_seconds(
    candidates: Iterable[Candidate], workload: Workload, replays: int = FINAL_REPLAYS
) -> list[float]:
    """Median times of several candidates, taken in turns."""
    graphs = [TimedGraph(candidate, workload) for candidate in candidates]
    times = [[graph.seconds() for graph in graphs] for _ in range(replays)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def prove_and_time(recipe: Recipe, found: Round, workload: Workload) -> tuple[Candidate | None, TriedRecord]:
    """Make a candidate, hold it against the reference, and time it if it may serve."""
    try:
        candidate = recipe.make()
    except Exception as error:  # a kernel that cannot be compiled or loaded here is rejected, not fatal
        return None, TriedRecord(recipe.name, "", None, words_of(error))
    verdict = found.trial.prove(candidate)
    if isinstance(verdict, Rejection):
        return None, TriedRecord(candidate.name, candidate.identity, None, verdict.reason)
    assert isinstance(verdict, Proof)
    return candidate, TriedRecord(candidate.name, candidate.identity, median_seconds(candidate, workload))


def bind(operator: Operator[Any], problem: Problem, found: Round) -> Bound:
    """Prove and time every candidate of a round, and bind the fastest. Raises `NumericsError` where none is
    proven."""
    workload = found.workload()
    proven: dict[str, tuple[Candidate, float]] = {}
    tried: dict[str, TriedRecord] = {}
    for recipe in operator.recipes(problem, found.bucket):
        candidate, entry = prove_and_time(recipe, found, workload)
        tried[entry.name] = entry
        if candidate is not None and entry.seconds is not None:
            proven[entry.name] = (candidate, entry.seconds)
    if not proven:
        reasons = "; ".join(f"{entry.name}: {entry.rejection}" for entry in tried.values())
        raise NumericsError(
            f"no candidate of the {operator.clause} clause is proven for {problem.key} at {found.bucket} rows on this "
            f"device: {reasons or 'none applies'}"
        )
    best = min(seconds for _, seconds in proven.values())
    close = [candidate for candidate, seconds in proven.values() if seconds <= best * CLOSE]
    for candidate, seconds in zip(close, interleaved_seconds(close, workload), strict=True):
        tried[candidate.name] = TriedRecord(candidate.name, candidate.identity, seconds)
    chosen = min(close, key=lambda candidate: tried[candidate.name].seconds or 0.0)
    return Bound(
        operator.clause,
        problem.key,
        found.bucket,
        chosen,
        tuple(tried.values()),
        workload.bytes,
        workload.operations,
    )
