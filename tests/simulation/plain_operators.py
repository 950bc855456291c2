"""The sampling stage's operators, row by row in numpy: plain enough to be believed, for tests of the schedule."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samebits.numerics.batch import SampleResult, SamplingBatch, TokenLists


def _list(lists: TokenLists, row: int) -> np.ndarray:
    start, end = int(lists.start[row]), int(lists.start[row + 1])
    return lists.ids[start:end].numpy()


def _order(row: np.ndarray) -> np.ndarray:
    return np.lexsort((np.arange(row.size), -row))


@dataclass(frozen=True)
class PlainOperators:
    """Only what `engine.sampling_stage` calls."""

    promises_bits: bool = True

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        rows = logits.numpy().astype(np.float64)
        sums = [np.exp(row - row.max()).sum() for row in rows]
        values = [row.max() + np.log(total) for row, total in zip(rows, sums, strict=True)]
        return torch.tensor(values, dtype=torch.float32)

    def token_logprobs(self, logits: Tensor, lse: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
        return logits[rows, token_ids] - lse[rows]

    def top_tokens(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        orders = [_order(row)[:count] for row in logits.numpy()]
        ids = torch.from_numpy(np.stack(orders))
        return ids, torch.gather(logits, 1, ids)

    def sample(self, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
        picked = [_sample_row(row, batch, i) for i, row in enumerate(logits.numpy())]
        processed = torch.from_numpy(np.stack([item[1] for item in picked])) if want_processed else None
        ids = torch.tensor([item[0] for item in picked])
        faults = torch.tensor([0 if item[0] >= 0 else -item[0] for item in picked], dtype=torch.uint8)
        return SampleResult(torch.where(ids < 0, -1, ids), faults, processed)


def _sample_row(logits: np.ndarray, batch: SamplingBatch, i: int) -> tuple[int, np.ndarray]:
    if not np.isfinite(logits).all():
        return -1, logits
    row = logits.astype(np.float64)
    prompt, output = _list(batch.prompt, i), _list(batch.output, i)
    seen = np.union1d(prompt, output).astype(np.int64)
    penalty = float(batch.repetition_penalty[i])
    if penalty != 1.0:
        row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    ids, counts = np.unique(output, return_counts=True)
    row[ids] -= counts * float(batch.frequency_penalty[i]) + float(batch.presence_penalty[i])
    start, end = int(batch.bias.start[i]), int(batch.bias.start[i + 1])
    row[batch.bias.ids[start:end].numpy()] += batch.bias.values[start:end].numpy()
    row[_list(batch.forbidden, i)] = -np.inf
    temperature = float(batch.temperature[i])
    if temperature > 0:
        row /= temperature
    order = _order(row)
    keep = int(batch.top_k[i]) or row.size
    row[order[keep:]] = -np.inf
    chances = np.exp(row - row.max())
    chances /= chances.sum()
    before = np.cumsum(chances[order]) - chances[order]
    row[order[before >= float(batch.top_p[i])]] = -np.inf
    row[chances < float(batch.min_p[i]) * chances.max()] = -np.inf
    if not np.isfinite(row).any():
        return -2, logits
    processed = (row - row.max() - np.log(np.exp(row - row.max()).sum())).astype(np.float32)
    if temperature > 0:
        key = np.array([batch.seed[i], batch.sample_index[i], batch.position[i]], dtype=np.int64)
        noise = np.random.default_rng(np.frombuffer(hashlib.sha256(key.tobytes()).digest(), np.uint32))
        row = row + noise.gumbel(size=row.size)
    return int(_order(row)[0]), processed
