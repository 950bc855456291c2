"""The sampling stage of a step that the host does not wait for.

Rows that ask for temperature alone (and perhaps the logprob of their token) go the plain way, which can be
captured; any other wish takes the general way, for all rows of that step. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.engine.device.inputs import StepValues
from samebits.engine.device.logprobs import QueuedLogprobs, queue_logprobs
from samebits.engine.device.place import Place
from samebits.engine.sampling_stage import MASK_FAILED, Sampled, SampledRow
from samebits.numerics.batch import SamplingBatch, SamplingNeeds, TokenLists
from samebits.numerics.operators import Operators
from samebits.schedule.messages import TokenLogprobs


def is_plain(row: SampledRow) -> bool:
    """Whether temperature, noise and the logprob of the sampled token are all that a row asks for."""
    sampling, logprobs = row.sampling, row.logprobs
    return not (
        row.mask is not None
        or sampling.top_k
        or sampling.top_p < 1.0
        or sampling.min_p
        or sampling.needs_history
        or sampling.logit_bias
        or row.forbidden
        or (logprobs.output and (logprobs.processed or logprobs.top or logprobs.token_ids))
    )


@dataclass(frozen=True)
class PlainConstants:
    """The neutral parameters of plain rows, made once."""

    zeros: Tensor
    """float32 [sampled]"""
    ones: Tensor
    """float32 [sampled]"""
    no_top_k: Tensor
    """int32 [sampled]"""
    no_lists: TokenLists
    rows: Tensor
    """int64 [sampled]: 0, 1, ..."""

    def batch(self, values: StepValues) -> SamplingBatch:
        """What the plain rows of a step ask for."""
        count = values.temperature.shape[0]
        zeros, ones = self.zeros[:count], self.ones[:count]
        lists = TokenLists(self.no_lists.start[: count + 1], self.no_lists.ids)
        return SamplingBatch(
            temperature=values.temperature,
            top_k=self.no_top_k[:count],
            top_p=ones,
            min_p=zeros,
            presence_penalty=zeros,
            frequency_penalty=zeros,
            repetition_penalty=ones,
            seed=values.seed,
            position=values.sample_position,
            sample_index=values.sample_index,
            prompt=lists,
            output=lists,
            bias=lists,
            forbidden=lists,
            needs=SamplingNeeds(),
        )


def plain_constants(device: torch.device, sampled: int) -> PlainConstants:
    start = torch.zeros(sampled + 1, dtype=torch.int64, device=device)
    return PlainConstants(
        zeros=torch.zeros(sampled, device=device),
        ones=torch.ones(sampled, device=device),
        no_top_k=torch.zeros(sampled, dtype=torch.int32, device=device),
        no_lists=TokenLists(start, torch.zeros(0, dtype=torch.int64, device=device)),
        rows=torch.arange(sampled, device=device),
    )


def sample_plain(
    operators: Operators,
    constants: PlainConstants,
    values: StepValues,
    logits: Tensor,
    kept: Tensor,
    with_logprobs: bool,
) -> Tensor:
    """Sample every row of `logits` [sampled, vocabulary], keep the tokens in `kept` for the next step, and return
    token, fault and, if wanted, logprob as int32 [2 or 3, sampled] (the logprob's bits). Never waits."""
    count = logits.shape[0]
    result = operators.sample(logits, constants.batch(values))
    chosen = kept[:count]
    torch.clamp(result.token_ids, min=0, out=chosen)
    packed = torch.empty((2 + with_logprobs, count), dtype=torch.int32, device=logits.device)
    packed[0].copy_(result.token_ids)
    packed[1].copy_(result.faults)
    if with_logprobs:
        lse = operators.log_sum_exp(logits)
        logprobs = operators.token_logprobs(logits, lse, constants.rows[:count], chosen)
        packed[2].view(torch.float32).copy_(logprobs)
    return packed


@dataclass(frozen=True)
class PlainSamples:
    """Plain rows, to be read once the step is over."""

    packed: Tensor
    """int32 [2 or 3, sampled] on the host"""
    places: Sequence[int]
    """of the rows, among the sampled ones and the kept tokens"""
    rows: Sequence[SampledRow]

    def read(self) -> list[Sampled]:
        tokens, faults = self.packed[:2].tolist()
        values = self.packed[2].view(torch.float32).tolist() if self.packed.shape[0] > 2 else []
        return [
            Sampled(
                tokens[place],
                faults[place],
                TokenLogprobs(tokens[place], values[place])
                if row.logprobs.output and not faults[place]
                else None,
            )
            for place, row in zip(self.places, self.rows, strict=True)
        ]


@dataclass(frozen=True)
class GeneralSamples:
    """Rows with any wishes, to be read once the step is over."""

    rows: Sequence[SampledRow]
    token_ids: Tensor
    faults: Tensor
    reports: Sequence[tuple[Sequence[int], QueuedLogprobs]]
    """(indices of rows, their logprobs)"""

    @property
    def places(self) -> Sequence[int]:
        """Of the rows, among the kept tokens."""
        return range(len(self.rows))

    def read(self) -> list[Sampled]:
        token_ids, faults = self.token_ids.tolist(), self.faults.tolist()
        logprobs: dict[int, TokenLogprobs] = {}
        for indices, queued in self.reports:
            found = queued.read([token_ids[i] for i in indices])
            logprobs.update((i, entry) for i, entry in zip(indices, found, strict=True) if not faults[i])
        for i, row in enumerate(self.rows):
            if row.mask is not None and row.mask.exception() is not None:
                faults[i] = MASK_FAILED
        return [Sampled(token_ids[i], faults[i], logprobs.get(i)) for i in range(len(self.rows))]


def queue_sampling(
    place: Place,
    operators: Operators,
    logits: Tensor,
    rows: Sequence[SampledRow],
    batch: SamplingBatch,
    kept: Tensor,
) -> GeneralSamples:
    """Sample `rows` from `logits` [rows, vocabulary] as `batch`, which lies on the device, asks, and keep the tokens
    in `kept` for the next step."""
    vocabulary = logits.shape[1]
    reporting = [i for i, row in enumerate(rows) if row.logprobs.output]
    processed = [i for i in reporting if rows[i].logprobs.processed]
    raw = [i for i in reporting if not rows[i].logprobs.processed]
    result = operators.sample(logits, batch, want_processed=bool(processed))
    chosen = result.token_ids.clamp(min=0)
    reports = []
    for indices, source in ((raw, logits), (processed, result.processed_logprobs)):
        if indices and source is not None:
            some = source if len(indices) == len(rows) else _rows_of(place, source, indices)
            ids = chosen if len(indices) == len(rows) else _rows_of(place, chosen, indices)
            # Processed ones are logprobs already: their normaliser is zero.
            lse = (
                operators.log_sum_exp(some)
                if source is logits
                else torch.zeros(len(indices), device=logits.device)
            )
            options = [rows[i].logprobs for i in indices]
            reports.append((indices, queue_logprobs(place, operators, some, lse, ids, options, vocabulary)))
    samples = GeneralSamples(rows, place.fetch(result.token_ids), place.fetch(result.faults), reports)
    kept[: len(rows)].copy_(chosen)
    return samples


def with_kept(
    place: Place, batch: SamplingBatch, rows: Sequence[SampledRow], places: Sequence[int], kept: Tensor
) -> SamplingBatch:
    """The batch on the device, the unread token of each row that needs its history taken from `kept` at `places`
    (-1: none). Their lists end with a stand-in, as `with_unread` writes it."""
    moved = batch.to(place.device, place.send)
    ends = batch.output.start[1:].tolist()
    patched = [
        (ends[i] - 1, places[i]) for i, row in enumerate(rows) if row.unread and row.sampling.needs_history
    ]
    if patched:
        where = place.send(torch.tensor(patched, dtype=torch.int64).t().contiguous())
        moved.output.ids.index_copy_(0, where[0], torch.index_select(kept, 0, where[1].clamp(min=0)))
    return moved


def _rows_of(place: Place, source: Tensor, indices: Sequence[int]) -> Tensor:
    return torch.index_select(source, 0, place.send(torch.tensor(indices, dtype=torch.int64)))
