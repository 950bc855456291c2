"""Queues whole steps on a device: inputs, forward, sampling stage, results. Nothing in here waits for the device.

A decode step whose bucket was captured replays its graphs; every other step is computed eagerly, on rows padded
to their bucket. Which of the two it is changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.engine.device.forward import ALONE, LogitsOrder, StepForward, StepOrder, StepRanks
from samebits.engine.device.graphs import (
    DecodeGraph,
    DecodeGraphs,
    Progress,
    capture_graphs,
    decode_shapes,
    shape_of_decode,
)
from samebits.engine.device.inputs import InputSizes, StepShape, StepValues
from samebits.engine.device.launched import Launched, QueuedOutcomes
from samebits.engine.device.place import Capture, Place
from samebits.engine.device.sampling import (
    GeneralSamples,
    PlainSamples,
    is_plain,
    plain_constants,
    queue_sampling,
    sample_plain,
    with_kept,
)
from samebits.engine.device.scores import queue_scores
from samebits.engine.runner import Runner
from samebits.engine.sampling_stage import with_masks, with_unread
from samebits.engine.step import HeldRow, PreparedStep
from samebits.numerics.batch import SamplingBatch

Buckets = Callable[[int], int]
"""Rows -> the bucket that they are padded to."""


@dataclass(frozen=True)
class Computed:
    """A forward that was queued."""

    values: StepValues
    hidden: Tensor
    """act [padded rows, hidden] of the wanted rows"""
    logits: Tensor | None
    """float32 [padded rows, vocabulary] of every row, where a graph gave them"""
    graph: DecodeGraph | None
    """None: computed eagerly"""
    places: Mapping[int, int] | None = None
    """where the hidden states of a row stand; None: those of all rows are there, in order"""

    def place(self, row: int) -> int:
        return row if self.places is None else self.places[row]


class DeviceRunner:
    """A model whose steps run on a device. `model` computes; its KV storage has one page more than requests may own,
    `sizes.padding_page`. Where several ranks share the model, this is rank 0's, and samples for all."""

    def __init__(
        self, model: Runner, place: Place, sizes: InputSizes, bucket_of: Buckets, ranks: StepRanks = ALONE
    ) -> None:
        self.model = model
        self.sizes = sizes
        self.graphs = DecodeGraphs()
        self._place = place
        self._bucket_of = bucket_of
        self._ranks = ranks
        self._step_forward = StepForward(model, place, sizes, ranks)
        self._inputs = self._step_forward.inputs
        self._constants = plain_constants(place.device, sizes.sampled)

    def capture(self, buckets: Sequence[int], capture: Capture, progress: Progress) -> None:
        """Capture decode steps of these buckets. Every place that they read must be sound already: it is, for the
        buffers start as zeros, which are rows of page 0 that belong to no request."""
        self.graphs = capture_graphs(
            decode_shapes(buckets, self.model.operators),
            capture,
            self._step_forward.captured_work,
            self._sample_shape,
            progress,
        )

    def close(self) -> None:
        """Give the graphs up; steps are eager afterwards."""
        self.graphs.release()

    def launch(self, step: PreparedStep, before: Mapping[str, int]) -> Launched:
        """Queue a step. `before` says, by rid, where the step before keeps the tokens that it sampled. Raises what
        the model raises."""
        with torch.inference_mode():
            return self._launch(step, before)

    def _launch(self, step: PreparedStep, before: Mapping[str, int]) -> Launched:
        rows = _sorted_rows(step, before)
        outcomes = QueuedOutcomes(chunk_of=rows.chunk_of, ready=rows.ready)
        outcomes.void = {rid for _, rid in step.unread_rows if rid not in before}
        tokens: dict[str, int] = {}
        if step.batch is not None:
            computed = self._forward(step, before, rows)
            outcomes.faults = self._place.fetch(computed.values.row_faults[: step.batch.rows])
            scored = [row for some in step.scored_rows for row in some]
            if scored:
                outcomes.scores = queue_scores(
                    self._place, self.model.operators, lambda some: self._logits(computed, some), scored
                )
            # What rows need of the tokens of the step before is copied before this step writes its own.
            outcomes.held = {at: self._hold(step, at, before, rows, computed) for at in rows.held}
            if rows.ready:
                sample = self._sample_plain if rows.plain else self._sample_general
                outcomes.samples = sample(step, rows, before, computed)
                tokens = {
                    step.sampled_rows[at].rid: place
                    for at, place in zip(rows.ready, outcomes.samples.places, strict=True)
                }
        for place, late in enumerate(step.late, start=self.sizes.late_tokens):
            outcomes.late.append((late, self._sample_late(late, place)))
            tokens[late.row.rid] = place
        return Launched(step, tokens, outcomes, self._place.moment())

    # The forward

    def _forward(self, step: PreparedStep, before: Mapping[str, int], rows: StepRows) -> Computed:
        """Queue the inputs and the forward."""
        batch = step.batch
        assert batch is not None
        bucket = self._bucket_of(batch.rows)
        captured = None
        if batch.rows == batch.requests <= self.graphs.largest:
            captured = shape_of_decode(batch, bucket, self.model.operators)
        graph = None if captured is None else self.graphs.get(captured)
        plain = rows.ready if rows.plain else []
        wanted = None if graph is not None else self._wanted(step, rows, bucket)
        last_rows = [rows.last_rows[at] for at in plain]
        if graph is not None and captured is not None:
            shape, places = captured, last_rows
        else:
            shape = StepShape(bucket, batch.requests, self._bucket_of(len(plain)) if plain else 0)
            places = list(range(len(plain)))
            last_rows = last_rows if wanted is None else [wanted[row] for row in last_rows]
        sampling = None
        if plain:
            assert step.sampling is not None
            sampling = (
                step.sampling if len(plain) == len(step.sampled_rows) else _select(step.sampling, plain)
            )
        unread = [(row, before[rid]) for row, rid in step.unread_rows if rid in before]
        kept = None if wanted is None else self._padded(list(wanted))
        order = StepOrder(shape, graph is not None, batch, unread, sampling, last_rows, places, kept)
        self._ranks.tell(order)
        values, hidden = self._step_forward.run(order, None if graph is None else graph.forward)
        return Computed(values, hidden, None if graph is None else graph.forward.outputs[1], graph, wanted)

    def _wanted(self, step: PreparedStep, rows: StepRows, bucket: int) -> Mapping[int, int] | None:
        """The rows whose hidden states somebody reads, with the place of each; None where it is most of them."""
        read = {rows.last_rows[at] for at in (*rows.ready, *rows.held)}
        read.update(row.row for some in step.scored_rows for row in some)
        wanted = sorted(read) or [0]
        if 2 * self._bucket_of(len(wanted)) > bucket:
            return None
        return {row: place for place, row in enumerate(wanted)}

    def _logits_of(self, hidden: Tensor) -> Tensor:
        """Logits outside of a graph."""
        self._ranks.tell(LogitsOrder(hidden.shape[0]))
        return self._step_forward.logits(hidden)

    def _logits(self, computed: Computed, rows: Sequence[int]) -> Tensor:
        """Logits of rows of the step, perhaps with padding behind them."""
        if computed.logits is not None:
            return torch.index_select(computed.logits, 0, self._send(rows))
        places = self._padded([computed.place(row) for row in rows])
        return self._logits_of(torch.index_select(computed.hidden, 0, self._send(places)))

    def _padded(self, rows: Sequence[int]) -> Sequence[int]:
        """As many as their bucket holds, the first row again and again behind them."""
        return [*rows, *([0] * (self._bucket_of(len(rows)) - len(rows)))]

    def _send(self, numbers: Sequence[int]) -> Tensor:
        return self._place.send(torch.tensor(numbers, dtype=torch.int64))

    # The sampling stage

    def _sample_shape(self, shape: StepShape, logits: Tensor, with_logprobs: bool) -> Tensor:
        return self._plain(self._inputs.on_device(shape), logits, with_logprobs)

    def _plain(self, values: StepValues, logits: Tensor, with_logprobs: bool) -> Tensor:
        kept = self._inputs.kept_tokens
        return sample_plain(self.model.operators, self._constants, values, logits, kept, with_logprobs)

    def _sample_plain(
        self, step: PreparedStep, rows: StepRows, before: Mapping[str, int], computed: Computed
    ) -> PlainSamples:
        sampled = [step.sampled_rows[at] for at in rows.ready]
        reporting = any(row.logprobs.output for row in sampled)
        if computed.graph is not None:
            captured = computed.graph.sampling[reporting]
            captured.replay()
            places = [rows.last_rows[at] for at in rows.ready]
            return PlainSamples(self._place.fetch(captured.outputs), places, sampled)
        last = torch.index_select(computed.hidden, 0, computed.values.last_rows)
        packed = self._plain(computed.values, self._logits_of(last), reporting)
        return PlainSamples(self._place.fetch(packed), list(range(len(sampled))), sampled)

    def _sample_general(
        self, step: PreparedStep, rows: StepRows, before: Mapping[str, int], computed: Computed
    ) -> GeneralSamples:
        assert step.sampling is not None
        sampled = [step.sampled_rows[at] for at in rows.ready]
        batch = with_unread(step.sampling, step.sampled_rows, {})
        if len(sampled) < len(step.sampled_rows):
            batch = _select(batch, rows.ready)
        batch = with_masks(batch, sampled, self.model.vocabulary)
        kept = self._inputs.kept_tokens
        moved = with_kept(self._place, batch, sampled, [before.get(row.rid, 0) for row in sampled], kept)
        logits = self._logits(computed, [rows.last_rows[at] for at in rows.ready])[: len(sampled)]
        return queue_sampling(self._place, self.model.operators, logits, sampled, moved, kept)

    def _hold(
        self, step: PreparedStep, at: int, before: Mapping[str, int], rows: StepRows, computed: Computed
    ) -> HeldRow:
        """Keep a row whose mask is missing for a later step's sampling."""
        assert step.sampling is not None
        row, last = step.sampled_rows[at], rows.last_rows[at]
        batch = _select(with_unread(step.sampling, step.sampled_rows, {}), [at])
        unread = None
        if row.unread:
            place = before[row.rid]
            unread = self._inputs.kept_tokens[place : place + 1].clone()
        hidden = computed.hidden[computed.place(last)][None].clone()
        return HeldRow(step.chunks[rows.chunk_of[at]], row, hidden, batch, unread)

    def _sample_late(self, held: HeldRow, place: int) -> GeneralSamples:
        batch = with_masks(held.sampling, [held.row], self.model.vocabulary)
        kept = self._inputs.kept_tokens
        source = kept if held.unread_token is None else held.unread_token
        moved = with_kept(self._place, batch, [held.row], [0], source)
        logits = self._logits_of(held.hidden)
        return queue_sampling(self._place, self.model.operators, logits, [held.row], moved, kept[place:])


@dataclass(frozen=True)
class StepRows:
    """The sampled rows of a step, sorted by what can be done with them."""

    chunk_of: list[int]
    """of each sampled row"""
    last_rows: list[int]
    """the row of the forward whose logits each sampled row reads"""
    ready: list[int]
    held: list[int]
    """those whose mask has not come; rows whose first token was held back are neither"""
    plain: bool
    """whether all that are ready can go the plain way"""


def _sorted_rows(step: PreparedStep, before: Mapping[str, int]) -> StepRows:
    chunk_of = [i for i, chunk in enumerate(step.chunks) if chunk.samples]
    last_rows = [step.first_rows[i + 1] - 1 for i in chunk_of]
    ready: list[int] = []
    held: list[int] = []
    for at, row in enumerate(step.sampled_rows):
        if row.unread and row.rid not in before:
            continue
        (ready if row.is_ready else held).append(at)
    plain = all(is_plain(step.sampled_rows[at]) for at in ready)
    return StepRows(chunk_of, last_rows, ready, held, plain)


def _select(batch: SamplingBatch, rows: Sequence[int]) -> SamplingBatch:
    return batch.select(torch.tensor(rows, dtype=torch.int64))
