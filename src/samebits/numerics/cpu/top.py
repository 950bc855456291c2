"""The most likely tokens and reported logprobs on CPU (numba)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samebits.numerics.cpu.arrays import float32_array, int32_array, int64_array
from samebits.numerics.cpu.kernel import Kernel
from samebits.numerics.cpu.lanes import load_int64
from samebits.numerics.cpu.order import EXCLUDED, MAGNITUDE, best_ids, fill_orders
from samebits.numerics.cpu.pool import Pool
from samebits.numerics.cpu.sampling import SHARED_FROM, check_operand

ZERO = np.float32(0.0)
ID_BITS = np.int64(32)
ID_MASK = np.int64(0xFFFFFFFF)


def _top_task(arguments, row):
    """The best ids of one row, in ascending order of id, each as order * 2**32 + id: one integer that sorts.

    Words: logits, ranks; rows, vocabulary, count.
    """
    rows, vocabulary, count = load_int64(arguments, 2), load_int64(arguments, 3), load_int64(arguments, 4)
    bits = int32_array(arguments, 0, (rows, vocabulary))[row]
    ranks = int64_array(arguments, 1, (rows, count))[row]
    orders, ids = np.empty(vocabulary, np.int32), np.empty(vocabulary, np.int32)
    fill_orders(bits, orders)
    for i in range(best_ids(orders, count, EXCLUDED, ids)):
        ranks[i] = (np.int64(orders[ids[i]]) << ID_BITS) | np.int64(ids[i])


def _token_logprobs_task(arguments, index):
    """logits[row, id] - lse[row] for each pair; the added zero turns -0 into +0.

    Words: logits, lse, rows, ids, logprobs; rows, vocabulary, pairs."""
    row_count, vocabulary, pairs = (
        load_int64(arguments, 5),
        load_int64(arguments, 6),
        load_int64(arguments, 7),
    )
    logits = float32_array(arguments, 0, (row_count, vocabulary))
    lse = float32_array(arguments, 1, row_count)
    rows, ids = int64_array(arguments, 2, pairs), int64_array(arguments, 3, pairs)
    logprobs = float32_array(arguments, 4, pairs)
    for i in range(pairs):
        logprobs[i] = (logits[rows[i], ids[i]] - lse[rows[i]]) + ZERO


TOP_TOKENS = Kernel(_top_task)
TOKEN_LOGPROBS = Kernel(_token_logprobs_task)


def top_tokens(pool: Pool, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See `Operators.top_tokens`. Values of -0 come back as +0; a row that is not finite goes by its bits.

    Raises ValueError unless 0 <= count <= vocabulary.
    """
    rows, vocabulary = check_operand("logits", logits, torch.float32).shape
    if not 0 <= count <= vocabulary:
        raise ValueError(f"count must lie in [0, {vocabulary}], got {count}")
    ranks = np.empty((rows, count), np.int64)
    if rows and count:
        words = (logits.data_ptr(), ranks.ctypes.data, rows, vocabulary, count)
        pool.run(TOP_TOKENS.address, words, rows, rows * vocabulary >= SHARED_FROM)
    ranks.sort(axis=1)
    flipped = ~(ranks >> ID_BITS).astype(np.int32)
    bits = flipped ^ ((flipped >> 31) & MAGNITUDE)
    return torch.from_numpy(ranks & ID_MASK), torch.from_numpy(bits.view(np.float32))


def token_logprobs(pool: Pool, logits: Tensor, lse: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
    """See `Operators.token_logprobs`. The caller has checked that rows and ids lie in the matrix."""
    row_count, vocabulary = check_operand("logits", logits, torch.float32).shape
    check_operand("lse", lse, torch.float32, (row_count,))
    pairs = check_operand("rows", rows, torch.int64).shape[0]
    check_operand("token_ids", token_ids, torch.int64, (pairs,))
    logprobs = torch.empty(pairs)
    if pairs:
        addresses = tuple(tensor.data_ptr() for tensor in (logits, lse, rows, token_ids, logprobs))
        pool.run(TOKEN_LOGPROBS.address, (*addresses, row_count, vocabulary, pairs), 1)
    return logprobs
