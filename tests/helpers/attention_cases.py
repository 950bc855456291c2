"""Ragged batches over shuffled pages for attention kernels, and the clause in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from samebits.numerics.operators import HeadLayout


@dataclass(frozen=True)
class Case:
    """`computed[b]` tokens of request b lie in the cache before its `query[b]` rows."""

    heads: HeadLayout
    page_tokens: int
    computed: tuple[int, ...]
    query: tuple[int, ...]


@dataclass(frozen=True)
class Inputs:
    case: Case
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    page_table: torch.Tensor
    query_start: np.ndarray
    row_request: torch.Tensor


def make_inputs(
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    sharp: float = 3.0,
    poison: float = 0.0,
) -> Inputs:
    """Sharpened queries, outlier channels in the keys, pages in shuffled places; slots that no row has written
    hold `poison`."""
    random = torch.Generator().manual_seed(seed)
    heads, page = case.heads, case.page_tokens
    lengths = [a + b for a, b in zip(case.computed, case.query, strict=True)]
    width = max(-(-length // page) for length in lengths) + 1
    needed = sum(-(-length // page) for length in lengths)
    places = torch.randperm(needed + 2, generator=random)
    table = torch.full((len(lengths), width), -1, dtype=torch.int32)
    keys = torch.full((needed + 2, heads.kv_heads, page, heads.head_dim), poison)
    values = keys.clone()
    taken = 0
    for request, length in enumerate(lengths):
        for number in range(-(-length // page)):
            place = int(places[taken])
            taken += 1
            table[request, number] = place
            count = min(page, length - number * page)
            shape = (heads.kv_heads, count, heads.head_dim)
            key = torch.randn(shape, generator=random)
            key[..., 3] *= 4.0
            keys[place, :, :count] = key
            values[place, :, :count] = torch.randn(shape, generator=random)
    rows = sum(case.query)
    queries = torch.randn((rows, heads.query_heads, heads.head_dim), generator=random) * sharp
    positions = [p for a, b in zip(case.computed, case.query, strict=True) for p in range(a, a + b)]
    owners = [b for b, count in enumerate(case.query) for _ in range(count)]
    return Inputs(
        case,
        queries.to(dtype).to(device),
        keys.to(dtype).to(device),
        values.to(dtype).to(device),
        torch.tensor(positions, device=device),
        table.to(device),
        np.concatenate([[0], np.cumsum(case.query)]).astype(np.int32),
        torch.tensor(owners, dtype=torch.int32, device=device),
    )


def in_float64(inputs: Inputs, scale: float) -> torch.Tensor:
    """The attention of every row, in float64 [rows, query_heads, head_dim]."""
    heads, page = inputs.case.heads, inputs.case.page_tokens
    group = heads.query_heads // heads.kv_heads
    keys, values = inputs.keys.double(), inputs.values.double()
    output = []
    for row, (position, request) in enumerate(
        zip(inputs.positions.tolist(), inputs.row_request.tolist(), strict=True)
    ):
        pages = inputs.page_table[request]
        slots = torch.arange(position + 1, device=keys.device)
        place = pages[slots // page].long()
        k = keys[place, :, slots % page].repeat_interleave(group, 1)
        v = values[place, :, slots % page].repeat_interleave(group, 1)
        scores = torch.einsum("hd,khd->hk", inputs.queries[row].double(), k) * scale
        output.append(torch.einsum("hk,khd->hd", scores.softmax(-1), v))
    return torch.stack(output).cpu()
