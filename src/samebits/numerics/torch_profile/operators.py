"""`TorchOperators`: the operator interface in plain torch, as an ordinary engine would write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from samebits.numerics.batch import RaggedBatch, SampleResult, SamplingBatch
from samebits.numerics.operators import HeadLayout, KvLayer, PackedLinear
from samebits.numerics.torch_profile import sampling


@dataclass(frozen=True)
class TorchLinear:
    """A weight [out, in] and a bias [out] in the activation dtype."""

    weight: Tensor
    bias: Tensor | None

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, rotate-half. x [rows, heads, head_dim], cos and sin float32 [rows, rotary_dim / 2]."""
    half = cos.shape[-1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((rotated.to(x.dtype), x[..., 2 * half :]), dim=-1)


@dataclass(frozen=True)
class TorchOperators:
    """The profile `torch` on one device. One product serves all rows of a step, so batch size picks the kernel,
    and with it the order of the sums: bits follow the batch."""

    device: torch.device
    activation_dtype: torch.dtype
    profile: str = "torch"
    promises_bits: bool = False
    captures: bool = False

    def description(self) -> dict[str, str]:
        return {
            "torch": str(torch.__version__),
            "device": str(self.device),
            "activations": str(self.activation_dtype).removeprefix("torch."),
            "threads": str(torch.get_num_threads()),
        }

    def compile(self, progress: Callable[[str, int, int], None]) -> None:
        """torch comes compiled."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> TorchLinear:
        kind = self.activation_dtype
        packed = weight.to(self.device, kind).contiguous()
        return TorchLinear(packed, None if bias is None else bias.to(self.device, kind))

    def pack_row_linear(self, weight: Tensor, bias: Tensor | None = None) -> TorchLinear:
        return self.pack_linear(weight, bias)

    def pack_output(self, weight: Tensor, vocabulary: int) -> TorchLinear:
        return self.pack_linear(weight)

    def allocate_kv(
        self, layers: int, pages: int, page_tokens: int, heads: HeadLayout
    ) -> tuple[KvLayer, ...]:
        shape = (pages, page_tokens, heads.kv_heads, heads.head_dim)

        def zeros() -> Tensor:
            return torch.zeros(shape, dtype=self.activation_dtype, device=self.device)

        return tuple(KvLayer(zeros(), zeros(), page_tokens) for _ in range(layers))

    def kv_bytes_per_token(self, layers: int, heads: HeadLayout) -> int:
        return 2 * layers * heads.kv_width * self.activation_dtype.itemsize

    def share_out(self, batch: RaggedBatch, host: RaggedBatch | None) -> RaggedBatch:
        return batch

    def second_way(self, rows: int, contexts: np.ndarray | None = None) -> bool:
        return False

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return functional.embedding(token_ids, table).to(self.activation_dtype)

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        assert isinstance(weight, TorchLinear)
        return functional.linear(x, weight.weight, weight.bias)

    def row_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        return self.linear(x, weight)

    def row_linear_add_norm(
        self,
        x: Tensor,
        weight: PackedLinear,
        residual: Tensor,
        norm_weight: Tensor,
        eps: float,
        whole: bool = True,
    ) -> tuple[Tensor, Tensor]:
        return self.add_rms_norm(self.row_linear(x, weight), residual, norm_weight, eps)

    def logits(self, x: Tensor, weight: PackedLinear) -> Tensor:
        return self.linear(x, weight).float()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)

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
        parts = qkv.split([heads.query_width, heads.kv_width, heads.kv_width], dim=-1)
        queries, keys, values = (part.unflatten(-1, (-1, heads.head_dim)) for part in parts)
        if query_norm is not None:
            queries = self.rms_norm(queries, query_norm, eps)
        if key_norm is not None:
            keys = self.rms_norm(keys, key_norm, eps)
        cos, sin = rope[batch.positions].unbind(1)
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
        finite = keys.isfinite().flatten(1).all(1) & values.isfinite().flatten(1).all(1)
        batch.row_faults.masked_fill_(~finite, 1)
        kv.keys.flatten(0, 1)[batch.slots] = keys.masked_fill(~finite[:, None, None], 0.0)
        kv.values.flatten(0, 1)[batch.slots] = values.masked_fill(~finite[:, None, None], 0.0)
        return queries

    def attention(
        self,
        queries: Tensor,
        heads: HeadLayout,
        scale: float,
        batch: RaggedBatch,
        kv: KvLayer,
        only_wanted: bool = False,
    ) -> Tensor:
        output = torch.empty_like(queries)
        starts = batch.query_start.tolist()
        for request, (first, last) in enumerate(pairwise(starts)):
            if first == last:
                continue
            positions = batch.positions[first:last]
            length = int(positions[-1]) + 1
            pages = batch.page_table[request, : -(-length // kv.page_tokens)].long()
            keys, values = (store[pages].flatten(0, 1)[:length] for store in (kv.keys, kv.values))
            seen = torch.arange(length, device=positions.device) <= positions[:, None]
            attended = functional.scaled_dot_product_attention(
                queries[first:last].transpose(0, 1)[None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                attn_mask=None if last - first == 1 else seen,
                scale=scale,
                enable_gqa=True,
            )
            output[first:last] = attended[0].transpose(0, 1)
        return output.flatten(1)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def gated_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        return self.silu_mul(self.linear(x, weight))

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        return torch.logsumexp(logits, dim=-1)

    def token_logprobs(self, logits: Tensor, lse: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
        return logits[rows, token_ids] - lse[rows] + 0.0

    def top_tokens(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, ids = torch.topk(logits, count, dim=-1)
        return ids, values

    def sample(self, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
        return sampling.sample(logits, batch, want_processed)

    def probe_digests(self, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
        """Empty: nothing is promised, so nothing is pinned."""
        return {}


def torch_operators(device: torch.device, weight_dtype: torch.dtype) -> TorchOperators:
    """The profile on a device: float32 activations on CPU, elsewhere the weights' dtype."""
    return TorchOperators(device, torch.float32 if device.type == "cpu" else weight_dtype)
