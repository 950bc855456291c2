"""The tuner: of the candidates that are proven at a shape and bucket, the fastest is bound.

It cannot change a bit. Timing is done in CUDA graphs over inputs that do not fit the cache together, the way
decode meets its weights. Long products draw all the power that the card may have, and which of them is fastest then is
not what short bursts on a cool card say: the close ones are timed again under load, as prefill runs them. The card sets
its clock by what is drawn, some tens of milliseconds late, so that of several candidates in short turns the hungriest
has the others' clock. Where steps of one size follow each other for seconds, each has the card for longer than that.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from samebits.errors import NumericsError
from samebits.numerics.gpu.operator import Operator, P, Recipe, Round, Workload
from samebits.numerics.gpu.proofs import ProofRecord, TriedRecord
from samebits.numerics.gpu.prover import Candidate, Rejection, words_of

REPLAYS = 3
FINAL_REPLAYS = 15
LEAST_REPLAYS = 3
REPLAY_SECONDS = 4e-3
"""A graph that takes longer is replayed less often."""
CLOSE, MOST_CLOSE = 1.05, 5
"""Candidates within this factor of the fastest, at most so many, are timed again, interleaved."""
HEAVY_OPERATIONS, MOST_HEAVY = 2e11, 3
"""Work of so many operations is first timed once, and then at most so many candidates under load."""
BURST_SECONDS, BURSTS = 15e-3, 3
"""Under load, candidates run so long in turns; the first turn warms up."""
LASTING_SECONDS, FINALISTS, FINAL_TURNS = 50e-3, 3, 2
"""Lasting work has the card so long with each candidate, after a turn that heats, and with the fastest few again."""


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


def captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of what `work` launches; it allocates nothing. `torch.cuda.graph` would first give all memory that is
    kept for later back to the driver, whom the next proof would ask for it again."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin()
        try:
            work()
        finally:
            graph.capture_end()
    return graph


class TimedGraph:
    """Work in turns with the workload's short kernel, captured."""

    def __init__(self, runs: Sequence[Callable[[], None]], between: Callable[[], None] | None) -> None:
        self.runs = len(runs)
        for run in runs:
            run()
        if between is not None:
            between()
        torch.cuda.synchronize()

        def turns() -> None:
            for run in runs:
                if between is not None:
                    between()
                run()

        self.graph = captured(turns)
        self.graph.replay()

    def seconds(self, replays: int = 1) -> float:
        """Of one run; some replays between two events."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / (self.runs * replays)


def graphs_of(candidates: Iterable[Candidate], workload: Workload) -> list[TimedGraph]:
    return [
        TimedGraph([functools.partial(candidate.run, *given) for given in workload.sets], workload.between)
        for candidate in candidates
    ]


def interleaved_seconds(
    candidates: Iterable[Candidate], workload: Workload, replays: int, least: int = LEAST_REPLAYS
) -> list[float]:
    """Median times of one run of several candidates, taken in turns: `replays`, and down to `least` where they are
    long. The time that the short kernel takes by itself is not counted."""
    graphs = graphs_of(candidates, workload)
    if workload.between is not None:
        graphs.append(TimedGraph([workload.between] * len(workload.sets), None))
    times = [[graph.seconds() for graph in graphs]]
    longest = max(seconds * graph.runs for seconds, graph in zip(times[0], graphs, strict=True))
    turns = max(least, min(replays, int(replays * REPLAY_SECONDS / longest)))
    times += [[graph.seconds() for graph in graphs] for _ in range(turns - 1)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    alone = medians.pop() if workload.between is not None else 0.0
    return [seconds - alone for seconds in medians]


def seconds_under_load(candidates: Iterable[Candidate], workload: Workload) -> list[float]:
    """Mean times of one run of several candidates, each of which has the card for BURST_SECONDS in its turns."""
    graphs = graphs_of(candidates, workload)
    replays = [max(1, round(BURST_SECONDS / (graph.seconds() * graph.runs))) for graph in graphs]
    times = [
        [graph.seconds(count) for graph, count in zip(graphs, replays, strict=True)] for _ in range(BURSTS)
    ]
    return [statistics.fmean(column[1:]) for column in zip(*times, strict=True)]


def seconds_when_lasting(candidates: Iterable[Candidate], workload: Workload) -> list[float]:
    """Mean times of one run of several candidates, each of which has the card for LASTING_SECONDS, the fastest few
    FINAL_TURNS times more; the others' times are no shorter than theirs."""
    graphs = graphs_of(candidates, workload)
    replays = [max(1, round(LASTING_SECONDS / (graph.seconds() * graph.runs))) for graph in graphs]
    graphs[0].seconds(replays[0])  # a card that was idle runs faster at first, and then slower than it will
    first = [graph.seconds(count) for graph, count in zip(graphs, replays, strict=True)]
    finalists = sorted(range(len(graphs)), key=first.__getitem__)[:FINALISTS]
    turns = [[graphs[place].seconds(replays[place]) for place in finalists] for _ in range(FINAL_TURNS)]
    means = [statistics.fmean(column) for column in zip(*turns, strict=True)]
    found = [max(seconds, *means) for seconds in first]
    for place, mean in zip(finalists, means, strict=True):
        found[place] = mean
    return found


def tuning_seconds(candidates: Sequence[Candidate], workload: Workload, replays: int) -> list[float]:
    """How the tuner times: heavy work that is to be compared closely under load, lasting work under lasting load,
    everything else in short turns."""
    if workload.operations < HEAVY_OPERATIONS:
        return interleaved_seconds(candidates, workload, replays)
    if replays < FINAL_REPLAYS:
        return interleaved_seconds(candidates, workload, replays, least=1)
    return (seconds_when_lasting if workload.lasting else seconds_under_load)(candidates, workload)


Stopwatch = Callable[[Sequence[Candidate], Workload, int], list[float]]
"""stopwatch(candidates, workload, replays): seconds of one run of each candidate"""


def prove_and_time(
    recipe: Recipe, found: Round, workload: Workload, stopwatch: Stopwatch = tuning_seconds
) -> tuple[Candidate | None, TriedRecord]:
    """Make a candidate, hold it against the reference, and time it if it may serve."""
    try:
        candidate = recipe.make()
    except Exception as error:  # a kernel that cannot be compiled or loaded here is rejected, not fatal
        return None, TriedRecord(recipe.name, "", None, words_of(error))
    verdict = found.trial.prove(candidate)
    if isinstance(verdict, Rejection):
        return None, TriedRecord(candidate.name, candidate.identity, None, verdict.reason)
    seconds = stopwatch([candidate], workload, REPLAYS)[0]
    return candidate, TriedRecord(candidate.name, candidate.identity, seconds)


def close_ones(
    proven: Sequence[Candidate], seconds: Callable[[Candidate], float], workload: Workload
) -> list[Candidate]:
    """The fastest candidates, which are worth another look."""
    best = min(map(seconds, proven))
    # On a card that other work shares, the short kernel alone may have taken longer than both: times below zero.
    limit = best + abs(best) * (CLOSE - 1.0)
    most = MOST_HEAVY if workload.operations >= HEAVY_OPERATIONS else MOST_CLOSE
    return [candidate for candidate in sorted(proven, key=seconds)[:most] if seconds(candidate) <= limit]


def bind(operator: Operator[P], problem: P, found: Round, stopwatch: Stopwatch = tuning_seconds) -> Bound:
    """Prove and time every candidate of a round, and bind the fastest. Raises `NumericsError` where none is
    proven."""
    workload = found.workload()
    proven: list[Candidate] = []
    tried: dict[str, TriedRecord] = {}
    for recipe in operator.recipes(problem, found.bucket):
        if recipe.fallback and proven:
            continue
        candidate, entry = prove_and_time(recipe, found, workload, stopwatch)
        tried[entry.name] = entry
        if candidate is not None:
            proven.append(candidate)
    if not proven:
        reasons = "; ".join(f"{entry.name}: {entry.rejection}" for entry in tried.values())
        raise NumericsError(
            f"no candidate of the {operator.clause} clause is proven for {problem.key} at {found.bucket} rows on this "
            f"device: {reasons or 'none applies'}"
        )

    def seconds(candidate: Candidate) -> float:
        return tried[candidate.name].seconds or 0.0

    close = proven if workload.lasting else close_ones(proven, seconds, workload)
    again_seconds = stopwatch(close, workload, FINAL_REPLAYS) if len(close) > 1 else map(seconds, close)
    for candidate, again in zip(close, again_seconds, strict=True):
        tried[candidate.name] = TriedRecord(candidate.name, candidate.identity, again)
    return Bound(
        operator.clause,
        problem.key,
        found.bucket,
        min(close, key=seconds),
        tuple(tried.values()),
        workload.bytes,
        workload.operations,
    )
