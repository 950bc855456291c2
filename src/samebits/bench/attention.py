"""The attention half of `samebits bench kernels`: our attention over pages against torch's, in float32, interleaved."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from samebits.bench.facts import seconds_of
from samebits.models.spec import ModelSpec
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import HeadLayout, KvLayer, Operators

SPANS = ((2048, 2048), (256, 2048), (1, 512), (1, 2048), (1, 8192))
"""(query rows, keys): a whole prefill, a chunk of one, decode steps."""
PAGE_TOKENS = 128
PAUSE_SECONDS = 0.05


def inputs(
    operators: Operators, heads: HeadLayout, rows: int, context: int
) -> tuple[Tensor, KvLayer, RaggedBatch]:
    """Random queries, filled pages and a batch of one request whose last `rows` rows are asked for."""
    pages = -(-context // PAGE_TOKENS)
    kv = operators.allocate_kv(1, pages, PAGE_TOKENS, heads)[0]
    kv.keys.normal_()
    kv.values.normal_()
    positions = torch.arange(context - rows, context)
    batch = RaggedBatch(
        token_ids=torch.zeros(rows, dtype=torch.int64),
        positions=positions,
        slots=positions,
        query_start=torch.tensor([0, rows], dtype=torch.int32),
        page_table=torch.arange(pages, dtype=torch.int32)[None],
        page_tokens=PAGE_TOKENS,
        row_faults=torch.zeros(rows, dtype=torch.uint8),
    )
    return torch.randn(rows, heads.query_heads, heads.head_dim), kv, batch


def measure(operators: Operators, heads: HeadLayout, rows: int, context: int, repeats: int) -> dict[str, Any]:
    """Median seconds of both. torch gets keys and values dense and repeated for every query head beforehand."""
    queries, kv, batch = inputs(operators, heads, rows, context)
    scale = heads.head_dim**-0.5
    dense = queries.transpose(0, 1)[None].contiguous()
    keys, values = (torch.randn(1, heads.query_heads, context, heads.head_dim) for _ in range(2))
    mask = torch.ones(rows, context, dtype=torch.bool).tril(context - rows) if 1 < rows < context else None

    def ours() -> object:
        return operators.attention(queries, heads, scale, batch, kv)

    def theirs() -> object:
        return scaled_dot_product_attention(dense, keys, values, attn_mask=mask, is_causal=rows == context)

    times: tuple[list[float], list[float]] = ([], [])
    for call in (ours, theirs):
        call()
    for _ in range(max(repeats, 5)):
        for call, taken in zip((ours, theirs), times, strict=True):
            time.sleep(PAUSE_SECONDS)
            taken.append(seconds_of(call))
    mine, torchs = (statistics.median(taken) for taken in times)
    seen = rows * (context - rows) + rows * (rows + 1) / 2
    return {
        "rows": rows,
        "keys": context,
        "samebits_seconds": mine,
        "torch_seconds": torchs,
        "ratio": torchs / mine,
        "gflops": 4.0 * seen * heads.query_width / mine / 1e9,
        "kv_gigabytes_per_second": 8.0 * context * heads.kv_width / mine / 1e9,
    }


def run(operators: Operators, spec: ModelSpec, repeats: int) -> list[dict[str, Any]]:
    """Every span that the model's context holds."""
    spans = [span for span in SPANS if span[1] <= spec.max_positions]
    return [measure(operators, spec.heads, rows, keys, repeats) for rows, keys in spans]


def table_rows(figures: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("attention", "GFLOP/s", "KV GB/s", "against torch")]
    for entry in figures:
        rows.append(
            (
                f"{entry['rows']} of {entry['keys']}",
                f"{entry['gflops']:.1f}",
                f"{entry['kv_gigabytes_per_second']:.1f}",
                f"{entry['ratio']:.2f}x",
            )
        )
    return rows
