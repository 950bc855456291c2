"""The explicit inputs of a step: which row belongs to whom, and what each sampled row asks for.

All values are frozen; tensors live on the device of the operators that read them. Nothing in here names a
request's identity, a clock or the batch's history, so no operator can depend on one.
"""

from __future__ import annotations

from collections.abc import Callable
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
    wanted: Tensor | None = None
    """int64: the rows whose hidden states are asked for, in that order; None: all. Every row's keys and values are
    stored all the same, and no wanted row's bits depend on it"""
    second_way: bool = False
    """of a captured decode step: whether it takes the second way, as `Operators.second_way` says"""
    work: Any = None
    """what `Operators.share_out` noted: who computes which part of the attention. It chooses no bit"""

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
class SamplingNeeds:
    """Which rules of the sampling clause some row of a batch asks for, as the host knows it, so that nobody has to
    look at the device to choose kernels. It chooses kernels and never bits."""

    penalties: bool = False
    bias: bool = False
    exclusions: bool = False
    """forbidden ids, or an allowed set"""
    filters: bool = False
    """top-k, top-p or min-p"""

    @property
    def nothing(self) -> bool:
        """Whether temperature and noise are all."""
        return not (self.penalties or self.bias or self.exclusions or self.filters)


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
    needs: SamplingNeeds | None = None
    """None: to be found out from the tensors"""

    @property
    def rows(self) -> int:
        return self.temperature.shape[0]

    def select(self, rows: Tensor) -> SamplingBatch:
        """What some rows (int64) ask, in the order given."""
        chosen: dict[str, Any] = {}
        for entry in fields(self):
            part = getattr(self, entry.name)
            if isinstance(part, Tensor):
                chosen[entry.name] = part[rows]
            else:
                chosen[entry.name] = part.select(rows) if isinstance(part, TokenLists) else part
        return SamplingBatch(**chosen)

    def found_needs(self) -> SamplingNeeds:
        """`needs`, or what the tensors say, which waits for the device where they lie on one."""
        if self.needs is not None:
            return self.needs
        penalties = (
            (self.presence_penalty != 0) | (self.frequency_penalty != 0) | (self.repetition_penalty != 1)
        )
        filters = (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)
        return SamplingNeeds(
            penalties=bool(penalties.any()),
            bias=self.bias.ids.shape[0] > 0,
            exclusions=self.allowed is not None or self.forbidden.ids.shape[0] > 0,
            filters=bool(filters.any()),
        )

    def to(self, device: torch.device, send: Callable[[Tensor], Tensor]) -> SamplingBatch:
        """The batch with its tensors copied to `device` by `send`, which may queue the copies."""
        moved: dict[str, Any] = {"needs": self.found_needs()}
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        for entry in fields(self):
            part = getattr(self, entry.name)
            if isinstance(part, Tensor):
                moved[entry.name] = send(part)
            elif isinstance(part, TokenLists):
                moved[entry.name] = TokenLists(
                    send(part.start),
                    send(part.ids) if part.ids.shape[0] else empty,
                    None if part.values is None else send(part.values),
                )
        return SamplingBatch(**moved)


@dataclass(frozen=True)
class SampleResult:
    """What the sampler drew."""

    token_ids: Tensor
    """int64 [rows]; -1 where the row has a fault"""
    faults: Tensor
    """uint8 [rows]: 1 = non-finite logits, 2 = nothing left to sample from"""
    processed_logprobs: Tensor | None
    """float32 [rows, vocabulary], -inf where excluded; only when asked for"""
