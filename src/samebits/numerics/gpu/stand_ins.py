"""Plain torch in the place of kernels, capturable. Promises nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samebits.numerics.batch import RaggedBatch, SampleResult, SamplingBatch
from samebits.numerics.operators import HeadLayout, KvLayer
from samebits.numerics.torch_profile import sampling
from samebits.numerics.torch_profile.operators import TorchOperators, rotate


class StandIns:
    def __init__(self, act: torch.dtype, split_tokens: int) -> None:
        self._act = act
        self._torch = TorchOperators(torch.device("cuda"), act)

    def allocate_kv(
        self, layers: int, pages: int, page_tokens: int, heads: HeadLayout, device: torch.device
    ) -> tuple[KvLayer, ...]:
        shape = (pages, heads.kv_heads, page_tokens, heads.head_dim)

        def zeros() -> Tensor:
            return torch.zeros(shape, dtype=self._act, device=device)

        return tuple(KvLayer(zeros(), zeros(), page_tokens) for _ in range(layers))

    def share_out(self, batch: RaggedBatch, host: RaggedBatch | None) -> Any:
        return None

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return self._torch.embed(token_ids, table)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._torch.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return self._torch.add_rms_norm(x, residual, weight, eps)

    def norm_rope_store(
        self, qkv: Tensor, heads: HeadLayout, query_norm: Tensor | None, key_norm: Tensor | None, eps: float,
        rope: Tensor, batch: RaggedBatch, kv: KvLayer,
    ) -> Tensor:  # fmt: skip
        parts = qkv.split([heads.query_width, heads.kv_width, heads.kv_width], dim=-1)
        queries, keys, values = (part.unflatten(-1, (-1, heads.head_dim)) for part in parts)
        if query_norm is not None and key_norm is not None:
            queries, keys = self.rms_norm(queries, query_norm, eps), self.rms_norm(keys, key_norm, eps)
        cos, sin = rope[batch.positions].unbind(1)
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
        finite = keys.isfinite().flatten(1).all(1) & values.isfinite().flatten(1).all(1)
        batch.row_faults.masked_fill_(~finite, 1)
        page, place = batch.slots // kv.page_tokens, batch.slots % kv.page_tokens
        kv.keys[page, :, place] = keys.masked_fill(~finite[:, None, None], 0.0)
        kv.values[page, :, place] = values.masked_fill(~finite[:, None, None], 0.0)
        return queries.contiguous()

    def attention(
        self, queries: Tensor, heads: HeadLayout, scale: float, batch: RaggedBatch, kv: KvLayer
    ) -> Tensor:
        """Every row over its whole page table, masked."""
        rows = queries.shape[0]
        owner = (torch.arange(rows, device=queries.device)[:, None] >= batch.query_start[None, 1:]).sum(1)
        owner = owner.clamp(max=batch.requests - 1)
        pages = min(batch.page_table.shape[1], 16)
        output = torch.empty_like(queries)
        for first in range(0, rows, 64):
            some = slice(first, min(first + 64, rows))
            table = batch.page_table[owner[some], :pages].clamp(min=0).long()
            keys, values = (
                store[table]
                .transpose(1, 2)
                .flatten(2, 3)
                .repeat_interleave(heads.query_heads // heads.kv_heads, 1)
                for store in (kv.keys, kv.values)
            )
            seen = torch.arange(keys.shape[2], device=keys.device)[None, :] <= batch.positions[some, None]
            output[some] = torch.nn.functional.scaled_dot_product_attention(
                queries[some, :, None], keys, values, attn_mask=seen[:, None, None], scale=scale
            )[:, :, 0]
        return output.flatten(1)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return self._torch.silu_mul(gate_up).contiguous()

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        return torch.logsumexp(logits, dim=-1)

    def token_logprobs(self, logits: Tensor, lse: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
        return logits[rows, token_ids] - lse[rows] + 0.0

    def top_tokens(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, ids = torch.topk(logits, count, dim=-1)
        return ids, values

    def sample(self, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
        if batch.needs is None or not batch.needs.nothing:
            return sampling.sample(logits, batch, want_processed)
        greedy = batch.temperature == 0
        scaled = logits / torch.where(greedy, 1.0, batch.temperature)[:, None]
        noise = sampling.gumbel_noise(batch, logits.shape[1])
        ids = torch.where(greedy, logits.argmax(-1), (scaled + noise).argmax(-1))
        faults = (~logits.isfinite().all(-1)).to(torch.uint8)
        return SampleResult(torch.where(faults > 0, -1, ids), faults, None)
