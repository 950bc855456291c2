"""The interface behind which every numerics profile and device stands.

The model code calls these and nothing else: in a step, torch itself only copies and does integer arithmetic
(trap 9). Every method is a pure function of its arguments, except that `norm_rope_store` writes the KV slots
and the fault flags named in its batch. `contract.md` gives the clause of each; a row's result never depends
on another row, on the number of rows, or on where the row stands.

"act" below is the activation dtype: float32 on CPU, the weights' dtype on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from samebits.numerics.batch import RaggedBatch, SampleResult, SamplingBatch


@dataclass(frozen=True)
class HeadLayout:
    """Attention heads of one layer, as this rank holds them."""

    query_heads: int
    kv_heads: int
    head_dim: int

    @property
    def query_width(self) -> int:
        return self.query_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class KvLayer:
    """Key and value pages of one layer. The layout of the two tensors is the operators' own."""

    keys: Tensor
    values: Tensor
    page_tokens: int


class PackedLinear(Protocol):
    """A weight matrix in the layout that its operators like. Opaque to the model."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...


class Operators(Protocol):
    """One numerics profile on one device."""

    @property
    def profile(self) -> str:
        """Name of the numerics profile: `exact`, `tp-invariant`, `torch` or `unpinned`."""

    @property
    def promises_bits(self) -> bool:
        """Whether the contract holds for this profile."""

    @property
    def device(self) -> torch.device: ...

    @property
    def activation_dtype(self) -> torch.dtype: ...

    def description(self) -> dict[str, str]:
        """What decides the bits and the speed here (instruction set, threads, versions), for logs and the plan."""

    # Set-up

    def compile(self, progress: Callable[[str, int, int], None]) -> None:
        """Make every kernel ready, so that no request waits for a compiler. Calls progress(name, done, total)."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """Take a weight [out, in] (bf16, fp16 or fp32) and a bias [out]. Values are kept exactly."""

    def pack_row_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """Take this rank's part [out, in of this rank] of a weight whose inputs are split over ranks, in rank order,
        and the whole bias [out]."""

    def pack_output(self, weight: Tensor, vocabulary: int) -> PackedLinear:
        """Take this rank's rows [held, hidden] of the output matrix (`vocabulary.shard_rows` of them, where there are
        several ranks), for `logits`."""

    def allocate_kv(
        self, layers: int, pages: int, page_tokens: int, heads: HeadLayout
    ) -> tuple[KvLayer, ...]:
        """Zeroed KV storage. `page_tokens` is a multiple of the contract's key block."""

    def kv_bytes_per_token(self, layers: int, heads: HeadLayout) -> int: ...

    @property
    def captures(self) -> bool:
        """Whether a forward and plain sampling can be captured in a graph: no look at the device, no waiting."""

    # Forward

    def share_out(self, batch: RaggedBatch, host: RaggedBatch | None) -> RaggedBatch:
        """`batch` with what these operators want to know of it before the first layer. `host` is the same batch on
        the host, without padding rows; None: a captured decode step, in which row r is request r, whose lengths
        only the device knows."""

    def second_way(self, rows: int, contexts: np.ndarray | None = None) -> bool:
        """Whether a second set of kernels serves decode steps of `rows` rows, so that each has a graph of its own; with
        contexts int64 [requests], in tokens, whether it is the faster one for them. It chooses no bit."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """Rows of the embedding as act [rows, hidden]; `table` holds this rank's rows of it."""

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """GEMM clause. x act [rows, in] -> act [rows, out]; the bias is added to the finished sum."""

    def row_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """GEMM clause of the profile over all ranks, joined by its collective clause, for a weight of
        `pack_row_linear`. x act [rows, in of this rank] -> act [rows, out], the same on every rank."""

    def row_linear_add_norm(
        self,
        x: Tensor,
        weight: PackedLinear,
        residual: Tensor,
        norm_weight: Tensor,
        eps: float,
        whole: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """add_rms_norm(row_linear(x, weight), residual, norm_weight, eps), bit for bit, perhaps in one go, and perhaps
        in place: nobody may read `residual` afterwards, for the second result may lie where it lay. Without
        `whole`, the second result is for nobody but the next call of this, as the residual of as many rows: a rank may
        keep those rows only that it adds. The first one then lasts until the next call but one."""

    def logits(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """GEMM clause with float32 out of the accumulator, for a weight of `pack_output`.
        x act [rows, hidden] -> float32 [rows, vocabulary], on every rank."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norm clause. x act [rows, hidden], weight [hidden] -> act [rows, hidden]."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rms_norm(x + residual), x + residual), the sum rounded to act first. Inputs are not written."""

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
        """Split qkv act [rows, q + 2 kv widths], norm queries and keys per head where weights are given, rotate
        both by `rope` float32 [positions, 2 (cos, sin), rotary_dim / 2] (rotate-half convention, as in
        transformers), store keys and values at `batch.slots`. A row with a non-finite key or value stores
        zeros there and has its fault flag set (trap 7). -> queries act [rows, query_heads, head_dim]."""

    def attention(
        self,
        queries: Tensor,
        heads: HeadLayout,
        scale: float,
        batch: RaggedBatch,
        kv: KvLayer,
        only_wanted: bool = False,
    ) -> Tensor:
        """Attention clause over the pages. queries act [rows, query_heads, head_dim] -> act [rows, query width]. With
        `only_wanted`, rows that are none of `batch.wanted` may hold anything."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(first half) * second half. act [rows, 2 width] -> act [rows, width]."""

    def gated_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """silu_mul(linear(x)), bit for bit, perhaps in one go. x act [rows, in] -> act [rows, out / 2]."""

    # Sampling stage

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        """Log-sum-exp clause. float32 [rows, vocabulary] -> float32 [rows]."""

    def token_logprobs(self, logits: Tensor, lse: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
        """Raw logprobs logits[rows[i], token_ids[i]] - lse[rows[i]], -0 made +0. int64 [n] twice -> float32 [n]."""

    def top_tokens(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(ids int64, logits float32) [rows, count] in total order: value descending (-0 = +0), id ascending."""

    def sample(self, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
        """Sampling clause: filters in the contract's order, then Gumbel-argmax, ties to the lower id.
        `logits` is not written."""

    # Self-test

    def probe_digests(self, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
        """Digest of every clause's output bytes on fixed inputs, by clause name; part of the fingerprint."""
