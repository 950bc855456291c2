"""The one step path: chunks in, sampled tokens and prompt logprobs out.

A prefill chunk, a decode token and (later) a verify of drafts go through here together and differ in data only.
A step is prepared on the host and executed on the device. Preparing copies all that the step reads of its
requests, so that the host may go on with them while the device runs; a token that the step before is still
sampling is filled in on the device's side, when this step begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor

from samebits.engine.batching import ragged_batch
from samebits.engine.masks import RequestMasks
from samebits.engine.runner import Runner
from samebits.engine.sampling_stage import (
    Sampled,
    SampledRow,
    SamplerTable,
    ScoredRow,
    sample_rows,
    sampled_row,
    score_rows,
    with_masks,
    with_unread,
)
from samebits.numerics.batch import RaggedBatch, SamplingBatch
from samebits.schedule.messages import TokenLogprobs
from samebits.schedule.request import Request
from samebits.schedule.scheduler import Chunk


@dataclass(frozen=True)
class HeldRow:
    """A row whose logits could be computed but whose grammar mask was not there yet. It is sampled in a later
    step's sampling stage; nobody else waits for it."""

    chunk: Chunk
    row: SampledRow
    hidden: Tensor
    """act [1, hidden]"""
    sampling: SamplingBatch
    unread_token: Tensor | None = None
    """int64 [1] on the device: the token before the sampled one, where `sampling` only has a stand-in for it"""


@dataclass(frozen=True)
class PreparedStep:
    """All that the device needs for one step."""

    chunks: Sequence[Chunk]
    batch: RaggedBatch | None
    """None when there are only late rows to sample"""
    first_rows: list[int]
    """first row of each chunk, and the number of rows at the end"""
    unread_rows: list[tuple[int, str]]
    """(row, rid) of the rows whose token id comes from the step before"""
    scored_rows: list[list[ScoredRow]]
    """of each chunk"""
    sampled_rows: list[SampledRow]
    """of the chunks that sample, in their order"""
    sampling: SamplingBatch | None
    late: Sequence[HeldRow] = ()
    """held rows whose mask has come"""


class ChunkResult(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a step did for one chunk."""

    chunk: Chunk
    sampled: Sampled | None = None
    scored: Sequence[tuple[int, TokenLogprobs | None]] = ()
    """(prompt position, its logprobs) of the tokens after the chunk's rows; None: the logits are not finite"""
    faulty: bool = False
    """a key or value of this chunk is not finite"""
    held: HeldRow | None = None
    """set when the chunk's row could not be sampled yet"""
    late: bool = False
    """whether this is the sampling of a row that was held; the rest of its chunk was reported before"""
    void: bool = False
    """the token that the chunk begins with was held back: nothing of the chunk counts"""


def prepare_step(
    chunks: Sequence[Chunk],
    page_table: np.ndarray,
    page_tokens: int,
    sampler_table: SamplerTable,
    masks: Mapping[Request, RequestMasks],
    late: Sequence[HeldRow] = (),
) -> PreparedStep:
    """The host's half. Reads the requests and changes none of them."""
    batch = ragged_batch(chunks, page_table, page_tokens) if chunks else None
    first_rows = batch.query_start.tolist() if batch is not None else [0]
    rows = [sampled_row(chunk, masks.get(chunk.request)) for chunk in chunks if chunk.samples]
    return PreparedStep(
        chunks=chunks,
        batch=batch,
        first_rows=first_rows,
        unread_rows=[
            (first_rows[i + 1] - 1, chunk.request.rid) for i, chunk in enumerate(chunks) if chunk.unread
        ],
        scored_rows=[
            _scored_rows(chunk, first) if chunk.start < chunk.request.prompt_length - 1 else []
            for chunk, first in zip(chunks, first_rows, strict=False)
        ],
        sampled_rows=rows,
        sampling=sampler_table.batch(rows) if rows else None,
        late=late,
    )


def execute_step(runner: Runner, step: PreparedStep, unread: Mapping[str, int]) -> list[ChunkResult]:
    """The device's half. `unread` holds the tokens that the step before sampled, by rid."""
    results = [_sample_late(runner, held) for held in step.late]
    if step.batch is None:
        return results
    void = set()
    for row, rid in step.unread_rows:
        if rid in unread:
            step.batch.token_ids[row] = unread[rid]
        else:
            void.add(rid)
    hidden = runner.forward(step.batch)
    scores = iter(score_rows(runner, hidden, [row for rows in step.scored_rows for row in rows]))
    outcomes = _sample(runner, step, hidden, unread, void)
    faults = step.batch.row_faults.cpu().numpy()
    any_fault = bool(faults.any())
    if not (any_fault or void or any(step.scored_rows) or HeldRow in map(type, outcomes.values())):
        # Most steps: tokens, and nothing else to tell.
        plain = zip(step.chunks, map(outcomes.get, range(len(step.chunks))), strict=True)
        return results + [ChunkResult(chunk, outcome) for chunk, outcome in plain]  # type: ignore[arg-type]
    for i, (chunk, scored) in enumerate(zip(step.chunks, step.scored_rows, strict=True)):
        outcome = outcomes.get(i)
        results.append(
            ChunkResult(
                chunk=chunk,
                sampled=outcome if isinstance(outcome, Sampled) else None,
                scored=[(row.position, next(scores)) for row in scored] if scored else (),
                faulty=any_fault and bool(faults[step.first_rows[i] : step.first_rows[i + 1]].any()),
                held=outcome if isinstance(outcome, HeldRow) else None,
                void=chunk.unread and chunk.request.spec.rid in void,
            )
        )
    return results


def _sample(
    runner: Runner, step: PreparedStep, hidden: Tensor, unread: Mapping[str, int], void: set[str]
) -> dict[int, Sampled | HeldRow]:
    """Sample the rows that can be sampled now and hold the others; by index of their chunk."""
    if step.sampling is None:
        return {}
    chunk_of = [i for i, chunk in enumerate(step.chunks) if chunk.samples]
    rows = step.sampled_rows
    batch = with_unread(step.sampling, rows, unread)
    outcomes: dict[int, Sampled | HeldRow] = {}
    ready = []
    for at, row in enumerate(rows):
        if row.unread and row.rid in void:
            continue
        if row.mask is None or row.is_ready:
            ready.append(at)
            continue
        last = step.first_rows[chunk_of[at] + 1] - 1
        outcomes[chunk_of[at]] = HeldRow(
            step.chunks[chunk_of[at]], row, hidden[last : last + 1].clone(), batch.select(torch.tensor([at]))
        )
    if ready:
        chosen = [rows[at] for at in ready]
        batch = batch if len(ready) == len(rows) else batch.select(torch.tensor(ready))
        # An array, for torch takes lists one number at a time.
        last_rows = torch.from_numpy(np.array([step.first_rows[chunk_of[at] + 1] - 1 for at in ready]))
        batch = with_masks(batch, chosen, runner.vocabulary)
        drawn = sample_rows(runner, hidden[last_rows], chosen, batch)
        outcomes.update(zip((chunk_of[at] for at in ready), drawn, strict=True))
    return outcomes


def _sample_late(runner: Runner, held: HeldRow) -> ChunkResult:
    batch = with_masks(held.sampling, [held.row], runner.vocabulary)
    return ChunkResult(
        chunk=held.chunk, sampled=sample_rows(runner, held.hidden, [held.row], batch)[0], late=True
    )


def sampled_tokens(results: Sequence[ChunkResult]) -> dict[str, int]:
    """What the next step may need of these results: tokens by rid. A faulty row gives 0, and is never read."""
    return {
        result.chunk.request.rid: max(result.sampled.token_id, 0)
        for result in results
        if result.sampled is not None
    }


def _scored_rows(chunk: Chunk, first_row: int) -> list[ScoredRow]:
    """The chunk's rows that score a prompt token: the row at position p scores the token at p + 1."""
    spec = chunk.request.spec
    first = max(chunk.request.scored_until - 1, chunk.start)
    last = min(chunk.request.prompt_length - 1, chunk.end)
    return [
        ScoredRow(first_row + position - 1 - chunk.start, position, spec.prompt_ids[position], spec.logprobs)
        for position in range(first + 1, last + 1)
    ]
