"""The one step path: chunks in, sampled tokens and prompt logprobs out.

A prefill chunk, a decode token and (later) a verify of drafts go through here together and differ in data only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from samebits.engine.batching import ragged_batch
from samebits.engine.runner import Runner
from samebits.engine.sampling_stage import Sampled, SamplerTable, ScoredRow, sample_rows, score_rows
from samebits.schedule.messages import TokenLogprobs
from samebits.schedule.scheduler import Chunk


@dataclass(frozen=True)
class ChunkResult:
    """What a step did for one chunk."""

    chunk: Chunk
    sampled: Sampled | None
    scored: list[TokenLogprobs | None]
    """prompt logprobs of the tokens after the chunk's rows, from the request's `scored_until` on"""
    faulty: bool
    """a key or value of this chunk was not finite"""


def run_step(
    runner: Runner,
    chunks: Sequence[Chunk],
    page_table: np.ndarray,
    page_tokens: int,
    sampler_table: SamplerTable,
) -> list[ChunkResult]:
    """Run the forward and the sampling stage for `chunks`. Reads the requests and changes none of them."""
    batch = ragged_batch(chunks, page_table, page_tokens)
    hidden = runner.forward(batch)
    first_rows = batch.query_start.tolist()
    scored_rows = [_scored_rows(chunk, first_rows[i]) for i, chunk in enumerate(chunks)]
    scores = iter(score_rows(runner, hidden, [row for rows in scored_rows for row in rows]))
    sampling = [i for i, chunk in enumerate(chunks) if chunk.samples]
    sampled: dict[int, Sampled] = {}
    if sampling:
        last_rows = torch.tensor([first_rows[i + 1] - 1 for i in sampling])
        requests = [chunks[i].request for i in sampling]
        drawn = sample_rows(runner, hidden[last_rows], requests, sampler_table)
        sampled = dict(zip(sampling, drawn, strict=True))
    faults = batch.row_faults.numpy()
    return [
        ChunkResult(
            chunk=chunk,
            sampled=sampled.get(i),
            scored=[next(scores) for _ in scored_rows[i]],
            faulty=bool(faults[first_rows[i] : first_rows[i + 1]].any()),
        )
        for i, chunk in enumerate(chunks)
    ]


def _scored_rows(chunk: Chunk, first_row: int) -> list[ScoredRow]:
    """The chunk's rows that score a prompt token: the row at position p scores the token at p + 1."""
    request = chunk.request
    first = max(request.scored_until - 1, chunk.start)
    last = min(request.prompt_length - 1, chunk.start + chunk.count)
    return [
        ScoredRow(first_row + position - chunk.start, request, request.tokens[position + 1])
        for position in range(first, last)
    ]
