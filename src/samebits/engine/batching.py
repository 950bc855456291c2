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
    counts = ends - starts
    query_start = np.zeros(len(chunks) + 1, dtype=np.int64)
    np.cumsum(counts, out=query_start[1:])
    rows = int(query_start[-1])
    within = np.arange(rows, dtype=np.int64) - np.repeat(query_start[:-1], counts)
    positions = np.repeat(starts, counts) + within
    longest = int(ends.max())
    table = page_table[slots, : -(-longest // page_tokens)]
    owner = np.repeat(np.arange(len(chunks), dtype=np.int64), counts)
    pages = table[owner, positions // page_tokens].astype(np.int64)
    return RaggedBatch(
        token_ids=torch.from_numpy(_token_ids(chunks, rows)),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(pages * page_tokens + positions % page_tokens),
        query_start=torch.from_numpy(query_start.astype(np.int32)),
        page_table=torch.from_numpy(table),
        page_tokens=page_tokens,
        row_faults=torch.zeros(rows, dtype=torch.uint8),
    )


def _token_ids(chunks: Sequence[Chunk], rows: int) -> np.ndarray:
    """The rows' token ids; 0 stands in for a token that is still unread."""
    ids = np.zeros(rows, dtype=np.int64)
    row = 0
    for chunk in chunks:
        start, count = chunk.start, chunk.end - chunk.start
        known = count - chunk.unread
        if known == 1:
            ids[row] = chunk.request.tokens[start]
        elif known:
            ids[row : row + known] = chunk.request.tokens[start : start + known]
        row += count
    return ids
