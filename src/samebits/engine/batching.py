"""From scheduled chunks to the explicit tensors of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from samebits.numerics.batch import RaggedBatch
from samebits.schedule.scheduler import Chunk


def ragged_batch(chunks: Sequence[Chunk], page_table: np.ndarray, page_tokens: int) -> RaggedBatch:
    """The forward's rows. `page_table` int32 [slots, pages] is the scheduler's; its rows are copied."""
    starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
    ends = np.array([chunk.end for chunk in chunks], dtype=np.int64)
    slots = np.array([chunk.request.slot for chunk in chunks], dtype=np.int64)
    owner = np.arange(len(chunks), dtype=np.int64)
    query_start = np.arange(len(chunks) + 1, dtype=np.int32)
    positions = starts
    counts = ends - starts
    if counts.max() > 1:
        np.cumsum(counts, out=query_start[1:])
        owner = np.repeat(owner, counts)
        positions = np.arange(query_start[-1], dtype=np.int64) + (starts - query_start[:-1])[owner]
    rows = len(positions)
    longest = int(ends.max())
    table = page_table[slots, : -(-longest // page_tokens)]
    page, offset = np.divmod(positions, page_tokens)
    return RaggedBatch(
        token_ids=torch.from_numpy(_token_ids(chunks, rows)),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(table[owner, page] * np.int64(page_tokens) + offset),
        query_start=torch.from_numpy(query_start),
        page_table=torch.from_numpy(table),
        page_tokens=page_tokens,
        row_faults=torch.zeros(rows, dtype=torch.uint8),
    )


def _token_ids(chunks: Sequence[Chunk], rows: int) -> np.ndarray:
    """The rows' token ids; 0 stands in for a token that is still unread."""
    if rows == len(chunks):
        tokens = [0 if chunk.unread else chunk.request.tokens[chunk.start] for chunk in chunks]
        return np.array(tokens, dtype=np.int64)
    ids = np.zeros(rows, dtype=np.int64)
    row = 0
    for chunk in chunks:
        request, start = chunk.request, chunk.start
        known = chunk.end - start - chunk.unread
        if known == 1:
            ids[row] = request.tokens[start]
        elif start + known <= request.prompt_length:
            ids[row : row + known] = np.frombuffer(request.prompt_data, np.int32)[start : start + known]
        else:
            ids[row : row + known] = request.tokens[start : start + known]
        row += chunk.end - start
    return ids
