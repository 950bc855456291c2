"""The explicit inputs of a step: which row belongs to whom, and what each sampled row asks for.

All values are frozen; tensors live on the device of the operators that read them. Nothing in here names a
request's identity, a clock or the batch's history, so no operator can depend on one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RaggedBatch:
    """The rows of one forward. Rows of one request are consecutive and ascend in position.

    Row `r` of request `b` (`query_start[b] <= r < query_start[b + 1]`) sees the keys of that request at the
    positions `0 .. positions[r]`. Position `p` of request `b` is stored in page
    `page_table[b, p // page_tokens]` at offset `p % page_tokens`; `slots[r]` is page * page_tokens + offset
    of the row's own position. A prefill chunk, a decode token and a verify of drafts differ in data only.
    """

    token_ids: Tensor
    """int64 [rows]"""
    positions: Tensor
    """int64 [rows], absolute"""
    slots: Tensor
    """int64 [rows], where the row's own key and value go"""
    query_start: Tensor
    """int32 [requests + 1]"""
    page_table: Tensor
    """int32 [requests, pages]; entries beyond a request's pages are -1 and never read"""
    page_tokens: int
    row_faults: Tensor
    """uint8 [rows], zero at entry: an operator that meets a non-finite key, value or logit in a row sets it"""

    @property
    def rows(self) -> int:
        return self.token_ids.shape[0]

    @property
    def requests(self) -> int:
        return self.query_start.shape[0] - 1


@dataclass(frozen=True)
class TokenLists:
    """One list of token ids a row (CSR form), with an optional value beside each id."""

    start: Tensor
    """int64 [rows + 1]"""
    ids: Tensor
    """int64 [start[-1]]"""
    values: Tensor | None = None
    """float32 [start[-1]]"""

    def select(self, rows: Tensor) -> TokenLists:
        """The lists of some rows, in the order given."""
        lengths = (self.start[1:] - self.start[:-1])[rows]
        start = torch.zeros(rows.shape[0] + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=start[1:])
        shift = torch.repeat_interleave(self.start[:-1][rows] - start[:-1], lengths)
        places = torch.arange(int(start[-1])) + shift
        return TokenLists(start, self.ids[places], None if self.values is None else self.values[places])


@dataclass(frozen=True)
class SamplingBatch:
    """What each row of a logits matrix asks of the sampler. Neutral values switch a filter off for that row."""

    temperature: Tensor
    """float32 [rows]; 0 is argmax"""
    top_k: Tensor
    """int32 [rows]; 0 is off"""
    top_p: Tensor
    """float32 [rows]; 1 is off"""
    min_p: Tensor
    """float32 [rows]; 0 is off"""
    presence_penalty: Tensor
    """float32 [rows]; 0 is off"""
    frequency_penalty: Tensor
    """float32 [rows]; 0 is off"""
    repetition_penalty: Tensor
    """float32 [rows]; 1 is off"""
    seed: Tensor
    """int64 [rows]: the bit pattern of the unsigned 64-bit seed"""
    position: Tensor
    """int64 [rows]: absolute position of the token being sampled"""
    sample_index: Tensor
    """int64 [rows]"""
    prompt: TokenLists
    """Prompt tokens of the rows that have a repetition penalty (empty lists for the others)"""
    output: TokenLists
    """Output tokens of the rows that have any penalty (empty lists for the others)"""
    bias: TokenLists
    """logit_bias, with values"""
    forbidden: TokenLists
    """Ids that must not be sampled (stop tokens before min_new_tokens)"""
    allowed: Tensor | None = None
    """int32 [rows, ceil(vocabulary / 32)]: bit set of the ids that a grammar allows; all ones for free rows"""

    @property
    def rows(self) -> int:
        return self.temperature.shape[0]

    def select(self, rows: Tensor) -> SamplingBatch:
        """What some rows (int64) ask, in the order given."""
        chosen: dict[str, Any] = {}
        for entry in fields(self):
            part = getattr(self, entry.name)
            if part is not None:
                chosen[entry.name] = part.select(rows) if isinstance(part, TokenLists) else part[rows]
        return SamplingBatch(**chosen)


@dataclass(frozen=True)
class SampleResult:
    """What the sampler drew."""

    token_ids: Tensor
    """int64 [rows]; -1 where the row has a fault"""
    faults: Tensor
    """uint8 [rows]: 1 = non-finite logits, 2 = nothing left to sample from"""
    processed_logprobs: Tensor | None
    """float32 [rows, vocabulary], -inf where excluded; only when asked for"""
