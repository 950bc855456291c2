"""The most likely tokens of each row, in total order, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samebits.numerics.gpu.arithmetic import bits_float, bits_of_order, order_of_bits
from samebits.numerics.gpu.checks import check_tensor
from samebits.numerics.gpu.configuration import Launch, Start, start

CHUNK = 2048
TOP_LAUNCH = Launch(warps=4, stages=1)
MERGED_AT_ONCE = 8192
"""Candidates that one program merges; more are sorted by torch, which is exact for distinct integers."""
LARGEST_KEY = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def best_of_chunks(logits, candidates, vocabulary, count, CHUNK: tl.constexpr):
    """Grid (rows, chunks): the `count` smallest keys (order * 2**32 + id) of each chunk, ascending."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    bits = tl.load(logits + row * vocabulary + ids, mask=ids < vocabulary, other=0)
    keys = (order_of_bits(bits).to(tl.int64) << 32) | ids.to(tl.int64)
    keys = tl.where(ids < vocabulary, keys, LARGEST_KEY)
    target = candidates + (row * tl.num_programs(1) + chunk) * count
    for rank in range(0, count):
        best = tl.min(keys, 0)
        tl.store(target + rank, best)
        keys = tl.where(keys == best, LARGEST_KEY, keys)


@triton.jit
def merge_chunks(candidates, ids, values, size, count, SIZE: tl.constexpr):
    """Grid (rows,): the first `count` of a row's `size` candidate keys."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SIZE)
    keys = tl.load(candidates + row * size + place, mask=place < size, other=LARGEST_KEY)
    for rank in range(0, count):
        best = tl.min(keys, 0)
        tl.store(ids + row * count + rank, best & 0xFFFFFFFF)
        tl.store(values + row * count + rank, bits_float(bits_of_order((best >> 32).to(tl.int32))))
        keys = tl.where(keys == best, LARGEST_KEY, keys)


def top_tokens(logits: Tensor, count: int, start: Start = start) -> tuple[Tensor, Tensor]:
    """See `Operators.top_tokens`. Raises ValueError unless 0 <= count <= vocabulary."""
    rows, vocabulary = check_tensor("logits", logits, (torch.float32,), (None, None)).shape
    if not 0 <= count <= vocabulary:
        raise ValueError(f"count must lie in [0, {vocabulary}], got {count}")
    ids = torch.empty((rows, count), dtype=torch.int64, device=logits.device)
    values = torch.empty((rows, count), dtype=torch.float32, device=logits.device)
    if rows == 0 or count == 0:
        return ids, values
    chunks = triton.cdiv(vocabulary, CHUNK)
    each = min(count, CHUNK)
    candidates = torch.empty((rows, chunks * each), dtype=torch.int64, device=logits.device)
    bits = logits.view(torch.int32)
    start(best_of_chunks, (rows, chunks), bits, candidates, vocabulary, each, CHUNK=CHUNK, launch=TOP_LAUNCH)
    size = candidates.shape[1]
    if size > MERGED_AT_ONCE:
        candidates = torch.sort(candidates, dim=1).values[:, :count].contiguous()
        size = count
    padded = int(triton.next_power_of_2(size))
    start(merge_chunks, (rows,), candidates, ids, values, size, count, SIZE=padded, launch=TOP_LAUNCH)
    return ids, values
