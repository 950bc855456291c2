"""A step that is on its way on the device, and what it did, once it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from samebits.engine.device.place import Moment
from samebits.engine.device.sampling import GeneralSamples, PlainSamples
from samebits.engine.device.scores import QueuedScores
from samebits.engine.sampling_stage import Sampled
from samebits.engine.step import ChunkResult, HeldRow, PreparedStep


@dataclass
class QueuedOutcomes:
    """What was queued for a step. Filled while it is queued, read when it is over."""

    chunk_of: Sequence[int] = ()
    """index of the chunk of each sampled row"""
    void: set[str] = field(default_factory=set)
    """rids whose first token was held back"""
    faults: Tensor | None = None
    """uint8 [rows] on the host"""
    scores: QueuedScores | None = None
    ready: Sequence[int] = ()
    """the sampled rows that `samples` holds, in its order"""
    samples: PlainSamples | GeneralSamples | None = None
    held: Mapping[int, HeldRow] = field(default_factory=dict)
    """by sampled row"""
    late: list[tuple[HeldRow, GeneralSamples]] = field(default_factory=list)


@dataclass(frozen=True)
class Launched:
    """A step on its way."""

    step: PreparedStep
    tokens: Mapping[str, int]
    """by rid, where the device keeps the tokens that this step samples"""
    outcomes: QueuedOutcomes
    end: Moment

    def wait(self) -> None:
        self.end.synchronize()

    def read(self) -> list[ChunkResult]:
        """Wait for the step and return what it did for each chunk."""
        self.wait()
        step, outcomes = self.step, self.outcomes
        results = [
            ChunkResult(chunk=held.chunk, sampled=samples.read()[0], late=True)
            for held, samples in outcomes.late
        ]
        if step.batch is None:
            return results
        assert outcomes.faults is not None
        faults = outcomes.faults.numpy()
        any_fault = bool(faults.any())
        scores = iter(outcomes.scores.read() if outcomes.scores is not None else [])
        sampled = self._sampled()
        held = {outcomes.chunk_of[at]: row for at, row in outcomes.held.items()}
        for i, (chunk, scored) in enumerate(zip(step.chunks, step.scored_rows, strict=True)):
            results.append(
                ChunkResult(
                    chunk=chunk,
                    sampled=sampled.get(i),
                    scored=[(row.position, next(scores)) for row in scored] if scored else (),
                    faulty=any_fault and bool(faults[step.first_rows[i] : step.first_rows[i + 1]].any()),
                    held=held.get(i),
                    void=chunk.unread and chunk.request.spec.rid in outcomes.void,
                )
            )
        return results

    def _sampled(self) -> dict[int, Sampled]:
        """By chunk."""
        outcomes = self.outcomes
        if outcomes.samples is None:
            return {}
        found = outcomes.samples.read()
        return {outcomes.chunk_of[at]: one for at, one in zip(outcomes.ready, found, strict=True)}
