"""Plain torch operators behind the `Operators` protocol, to check the decoder apart from the real numerics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.numerics.batch import RaggedBatch, SampleResult, SamplingBatch
from samebits.numerics.operators import HeadLayout, KvLayer, PackedLinear


@dataclass(frozen=True)
class PlainLinear:
    weight: Tensor
    bias: Tensor | None

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class PlainOperators:
    """Everything in `activation_dtype`; no promise of bits."""

    activation_dtype: torch.dtype = torch.float32
    profile: str = "torch"
    promises_bits: bool = False
    probe: str = "plain"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def description(self) -> dict[str, str]:
        return {}

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        return PlainLinear(
            weight.to(self.activation_dtype), None if bias is None else bias.to(self.activation_dtype)
        )

    def allocate_kv(
        self, layers: int, pages: int, page_tokens: int, heads: HeadLayout
    ) -> tuple[KvLayer, ...]:
        shape = (pages * page_tokens, heads.kv_heads, heads.head_dim)
        return tuple(
            KvLayer(
                torch.zeros(shape, dtype=self.activation_dtype),
                torch.zeros(shape, dtype=self.activation_dtype),
                page_tokens,
            )
            for _ in range(layers)
        )

    def kv_bytes_per_token(self, layers: int, heads: HeadLayout) -> int:
        return 2 * layers * heads.kv_width * self.activation_dtype.itemsize

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return table[token_ids].to(self.activation_dtype)

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        assert isinstance(weight, PlainLinear)
        return torch.nn.functional.linear(x, weight.weight, weight.bias)

    def logits(self, x: Tensor, weight: PackedLinear) -> Tensor:
        return self.linear(x, weight).float()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        return weight.to(x.dtype) * (x * scale)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def norm_rope_store(
        self,
        qkv: Tensor,
        heads: HeadLayout,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        eps: float,
        rope: Tensor,
        batch: RaggedBatch,
        kv: KvLayer,
    ) -> Tensor:
        widths = [heads.query_width, heads.kv_width, heads.kv_width]
        queries, keys, values = (
            part.reshape(qkv.shape[0], -1, heads.head_dim) for part in qkv.split(widths, dim=1)
        )
        if query_norm is not None and key_norm is not None:
            queries, keys = self.rms_norm(queries, query_norm, eps), self.rms_norm(keys, key_norm, eps)
        cos, sin = rope[batch.positions].to(qkv.dtype).unsqueeze(2).unbind(1)
        kv.keys[batch.slots] = _rotate(keys, cos, sin)
        kv.values[batch.slots] = values
        return _rotate(queries, cos, sin)

    def attention(
        self, queries: Tensor, heads: HeadLayout, scale: float, batch: RaggedBatch, kv: KvLayer
    ) -> Tensor:
        output = torch.empty_like(queries)
        group = heads.query_heads // heads.kv_heads
        for request in range(batch.requests):
            rows = slice(int(batch.query_start[request]), int(batch.query_start[request + 1]))
            positions = batch.positions[rows]
            seen = torch.arange(int(positions.max()) + 1)
            pages = batch.page_table[request, seen // batch.page_tokens].long()
            slots = pages * batch.page_tokens + seen % batch.page_tokens
            keys = kv.keys[slots].repeat_interleave(group, dim=1)
            values = kv.values[slots].repeat_interleave(group, dim=1)
            scores = torch.einsum("rhd,khd->rhk", queries[rows], keys) * scale
            scores.masked_fill_((seen > positions[:, None]).unsqueeze(1), float("-inf"))
            output[rows] = torch.einsum("rhk,khd->rhd", torch.softmax(scores, dim=-1), values)
        return output.reshape(queries.shape[0], heads.query_width)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        return torch.logsumexp(logits, dim=-1)

    def token_logprobs(self, logits: Tensor, lse: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
        return logits[rows, token_ids] - lse[rows]

    def top_tokens(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, ids = logits.topk(count, dim=-1)
        return ids, values

    def sample(self, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
        raise NotImplementedError("the decoder does not sample")

    def probe_digests(self, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
        return {"linear": self.probe}


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
