"""Helpers of the numerics tests: comparing bits, and running a context through store and attention in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samebits.numerics.adversarial import hashed_floats, hashed_words
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.operators import HeadLayout
from samebits.numerics.rope import rope_table

EPS = 1e-6


def bits(x: Tensor | np.ndarray) -> np.ndarray:
    """The integer view of float32 values: -0 differs from +0, and NaN equals itself."""
    array = x.numpy() if isinstance(x, Tensor) else np.asarray(x)
    assert array.dtype == np.float32
    return np.ascontiguousarray(array).view(np.int32)


def same_bits(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> bool:
    return bits(a).shape == bits(b).shape and bool((bits(a) == bits(b)).all())


def differing(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> int:
    return int((bits(a) != bits(b)).sum())


@dataclass(frozen=True)
class Context:
    """The inputs of one request's attention: packed qkv rows, head norms, table."""

    heads: HeadLayout
    qkv: Tensor
    query_norm: Tensor
    key_norm: Tensor
    table: Tensor

    @property
    def tokens(self) -> int:
        return self.qkv.shape[0]


def make_context(heads: HeadLayout, tokens: int, seed: int = 7) -> Context:
    """Signed rows with wide exponents; norms above 1 sharpen the attention, so that weights differ."""
    width = heads.query_width + 2 * heads.kv_width
    qkv = torch.from_numpy(hashed_floats(seed, (tokens, width), (-3, 3)).copy())
    norms = torch.from_numpy(hashed_floats(seed + 1, (2, heads.head_dim), (0, 1)).copy())
    return Context(heads, qkv, norms[0], norms[1], rope_table(max(tokens, 1), 1e4, heads.head_dim))


def page_order(pages: int, seed: int) -> Tensor:
    """int32 permutation of the pages."""
    return torch.from_numpy(hashed_words(seed, pages).argsort(kind="stable").astype(np.int32))


def make_batch(tables: Sequence[Tensor], spans: Sequence[tuple[int, int]], page_tokens: int) -> RaggedBatch:
    """A batch of requests, one page table and one span of positions each."""
    longest = max(table.shape[0] for table in tables)
    page_table = torch.full((len(tables), longest), -1, dtype=torch.int32)
    positions, slots, starts = [], [], [0]
    for request, (table, (start, end)) in enumerate(zip(tables, spans, strict=True)):
        page_table[request, : table.shape[0]] = table
        own = torch.arange(start, end)
        positions.append(own)
        slots.append(table[own // page_tokens].to(torch.int64) * page_tokens + own % page_tokens)
        starts.append(starts[-1] + end - start)
    rows = starts[-1]
    return RaggedBatch(
        token_ids=torch.zeros(rows, dtype=torch.int64),
        positions=torch.cat(positions),
        slots=torch.cat(slots),
        query_start=torch.tensor(starts, dtype=torch.int32),
        page_table=page_table,
        page_tokens=page_tokens,
        row_faults=torch.zeros(rows, dtype=torch.uint8),
    )


def run_chunks(
    operators: CpuOperators,
    context: Context,
    chunks: Sequence[int],
    page_tokens: int = 64,
    seed: int = 3,
    poison: bool = True,
) -> Tensor:
    """Store and attend chunk by chunk over shuffled pages; float32 [tokens, query width].

    With `poison`, every slot holds NaN before it is written, as a stale page might.
    """
    heads = context.heads
    pages = -(-context.tokens // page_tokens)
    order = page_order(pages + 2, seed)[:pages]
    kv = operators.allocate_kv(1, pages + 2, page_tokens, heads)[0]
    if poison:
        kv.keys.fill_(float("nan"))
        kv.values.fill_(float("inf"))
    outputs = []
    start = 0
    for chunk in chunks:
        batch = make_batch([order], [(start, start + chunk)], page_tokens)
        queries = operators.norm_rope_store(
            context.qkv[start : start + chunk].contiguous(), heads, context.query_norm, context.key_norm, EPS,
            context.table, batch, kv,
        )  # fmt: skip
        outputs.append(operators.attention(queries, heads, heads.head_dim**-0.5, batch, kv))
        assert not batch.row_faults.any()
        start += chunk
    assert start == context.tokens
    return torch.cat(outputs)
