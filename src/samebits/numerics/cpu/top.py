"""Reported logprobs and the most likely tokens on CPU (numba)."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from samebits.numerics.cpu.filters import value_of_order
from samebits.numerics.cpu.order import EXCLUDED, best_ids, fill_orders

ZERO = np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def top_rows(first, last, bits, ids, values):
    """The ids.shape[1] best ids of rows first .. last - 1, best first, and their values."""
    orders = np.empty(bits.shape[1], np.int32)
    for row in range(first, last):
        fill_orders(bits[row], orders)
        best = best_ids(orders, ids.shape[1], EXCLUDED)
        for i in range(ids.shape[1]):
            ids[row, i] = best[i]
            values[row, i] = value_of_order(orders[best[i]])


def top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See `Operators.top_tokens`. Values of -0 come back as +0. `count` lies in 1 .. vocabulary."""
    rows, vocabulary = logits.shape
    if not 0 <= count <= vocabulary:
        raise ValueError(f"count must lie in [0, {vocabulary}], got {count}")
    ids = torch.empty((rows, count), dtype=torch.int64)
    values = torch.empty((rows, count), dtype=torch.float32)
    if count:
        bits = logits.contiguous().view(torch.int32).numpy()
        top_rows(0, rows, bits, ids.numpy(), values.numpy())
    return ids, values


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def token_logprob_list(logits, lse, rows, token_ids, logprobs):
    """logits[row, id] - lse[row] for each pair; the added zero turns -0 into +0."""
    for i in range(rows.shape[0]):
        logprobs[i] = (logits[rows[i], token_ids[i]] - lse[rows[i]]) + ZERO


def token_logprobs(logits: Tensor, lse: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
    """See `Operators.token_logprobs`."""
    logprobs = torch.empty(rows.shape[0], dtype=torch.float32)
    arrays = (logits.contiguous(), lse, rows, token_ids, logprobs)
    token_logprob_list(*(array.numpy() for array in arrays))
    return logprobs
