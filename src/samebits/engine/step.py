"""The one step path: chunks in, sampled tokens and prompt logprobs out.

A prefill chunk, a decode token and (later) a verify of drafts go through here together and differ in data only.
A step is prepared on the host and executed on the device. Preparing copies all that the step reads of its
requests, so that the host may go on with them while the device runs; a token that the step before is still
sampling is filled in on the device's side, when this step begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from samebits.engine.batching import ragged_batch
from samebits.engine.runner import Runner
from samebits.engine.sampling_stage import (
    Sampled,
    SampledRow,
    SamplerTable,
    ScoredRow,
    sample_rows,
    sampled_row,
    score_rows,
    with_unread,
)
from samebits.numerics.batch import RaggedBatch, SamplingBatch
from samebits.schedule.messages import TokenLogprobs
from samebits.schedule.scheduler import Chunk


@dataclass(frozen=True)
class PreparedStep:
    """All that the device needs for one step."""

    chunks: Sequence[Chunk]
    batch: RaggedBatch
    first_rows: list[int]
    """first row of each chunk, and the number of rows at the end"""
    unread_rows: list[tuple[int, str]]
    """(row, rid) of the rows whose token id comes from the step before"""
    scored_rows: list[list[ScoredRow]]
    """of each chunk"""
    sampled_rows: list[SampledRow]
    """of the chunks that sample, in their order"""
    sampling: SamplingBatch | None


@dataclass(frozen=True)
class ChunkResult:
    """What a step did for one chunk."""

    chunk: Chunk
    sampled: Sampled | None
    scored: list[TokenLogprobs | None]
    """prompt logprobs of the tokens after the chunk's rows; None where the logits are not finite"""
    faulty: bool
    """a key or value of this chunk is not finite"""


def prepare_step(
    chunks: Sequence[Chunk], page_table: np.ndarray, page_tokens: int, sampler_table: SamplerTable
) -> PreparedStep:
    """The host's half. Reads the requests and changes none of them."""
    batch = ragged_batch(chunks, page_table, page_tokens)
    first_rows = batch.query_start.tolist()
    rows = [sampled_row(chunk) for chunk in chunks if chunk.samples]
    return PreparedStep(
        chunks=chunks,
        batch=batch,
        first_rows=first_rows,
        unread_rows=[
            (first_rows[i + 1] - 1, chunk.request.rid) for i, chunk in enumerate(chunks) if chunk.unread
        ],
        scored_rows=[_scored_rows(chunk, first_rows[i]) for i, chunk in enumerate(chunks)],
        sampled_rows=rows,
        sampling=sampler_table.batch(rows) if rows else None,
    )


def execute_step(runner: Runner, step: PreparedStep, unread: Mapping[str, int]) -> list[ChunkResult]:
    """The device's half. `unread` holds the tokens that the step before sampled, by rid."""
    for row, rid in step.unread_rows:
        step.batch.token_ids[row] = unread[rid]
    hidden = runner.forward(step.batch)
    scores = iter(score_rows(runner, hidden, [row for rows in step.scored_rows for row in rows]))
    sampled: dict[int, Sampled] = {}
    if step.sampling is not None:
        sampling = [i for i, chunk in enumerate(step.chunks) if chunk.samples]
        last_rows = torch.tensor([step.first_rows[i + 1] - 1 for i in sampling])
        batch = with_unread(step.sampling, step.sampled_rows, unread)
        drawn = sample_rows(runner, hidden[last_rows], step.sampled_rows, batch)
        sampled = dict(zip(sampling, drawn, strict=True))
    faults = step.batch.row_faults.cpu().numpy()
    return [
        ChunkResult(
            chunk=chunk,
            sampled=sampled.get(i),
            scored=[next(scores) for _ in step.scored_rows[i]],
            faulty=bool(faults[step.first_rows[i] : step.first_rows[i + 1]].any()),
        )
        for i, chunk in enumerate(step.chunks)
    ]


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
        ScoredRow(first_row + position - chunk.start, spec.logprobs, spec.prompt_ids[position + 1])
        for position in range(first, last)
    ]
