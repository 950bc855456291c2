"""The profiles `exact` and `unpinned` on a GPU, behind the Operators interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import triton
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.batch import RaggedBatch, SampleResult, SamplingBatch
from samebits.numerics.gpu import (
    activation,
    attention,
    embedding,
    log_sum_exp,
    norm,
    rope_store,
    sampling,
    top,
)
from samebits.numerics.gpu.attention_work import AttentionScheduler
from samebits.numerics.gpu.buckets import buckets_up_to
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.products import FreeProducts, GpuLinear, Products, ProvenProducts, pack_linear
from samebits.numerics.gpu.sampling import SamplingWorkspace, Wants, sampling_workspace
from samebits.numerics.operators import HeadLayout, KvLayer, PackedLinear
from samebits.numerics.probes import probe_digests

ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)


class GpuOperators:
    """Numerics on one GPU. Activations have the weights' dtype."""

    def __init__(
        self,
        device: torch.device,
        act: torch.dtype,
        split_tokens: int,
        products: Products,
        promises: bool = True,
    ) -> None:
        if act not in ACTIVATIONS:
            raise NumericsError(f"activations on a GPU are bfloat16, float16 or float32, not {act}")
        self._device = device
        self._act = act
        self._split_tokens = split_tokens
        self.products = products
        self._promises = promises
        self._problems: list[GemmProblem] = []
        self._workspace: SamplingWorkspace | None = None
        self._attention = AttentionScheduler(device, split_tokens, pinned=promises)

    @property
    def profile(self) -> str:
        return "exact" if self._promises else "unpinned"

    @property
    def promises_bits(self) -> bool:
        return self._promises

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def activation_dtype(self) -> torch.dtype:
        return self._act

    @property
    def captures(self) -> bool:
        return True

    def description(self) -> dict[str, str]:
        properties = torch.cuda.get_device_properties(self._device)
        return {
            "device": properties.name,
            "multiprocessors": str(properties.multi_processor_count),
            "activations": str(self._act).removeprefix("torch."),
            "torch": str(torch.__version__),
            "cuda": str(torch.version.cuda),
            "triton": triton.__version__,
            "attention split": f"{self._split_tokens} keys",
        }

    def compile(self, progress: Callable[[str, int, int], None]) -> None:
        """Kernels are compiled when the shapes are known."""

    # Set-up

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> GpuLinear:
        return self._pack(weight, bias, self._act)

    def pack_row_linear(self, weight: Tensor, bias: Tensor | None = None) -> GpuLinear:
        return self.pack_linear(weight, bias)

    def pack_output(self, weight: Tensor, vocabulary: int) -> GpuLinear:
        return self._pack(weight, None, torch.float32)

    def _pack(self, weight: Tensor, bias: Tensor | None, out: torch.dtype) -> GpuLinear:
        linear = pack_linear(weight, bias, self._device, self._act, out)
        self._problems.append(linear.problem)
        return linear

    def bind(
        self,
        step_rows: int,
        sampled_rows: int,
        page_tokens: int,
        folder: Path,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Prove and choose the products of all weights that were packed, for steps of up to `step_rows` rows of which
        up to `sampled_rows` get logits at once, and the attention of prefill over pages of `page_tokens`; proofs are
        kept in `folder`. Raises `NumericsError` where nothing is proven for a shape."""

        def buckets(problem: GemmProblem) -> Sequence[int]:
            gives_logits = problem.out == torch.float32 != self._act
            return buckets_up_to(sampled_rows if gives_logits else max(step_rows, sampled_rows))

        self.products.bind(self._problems, buckets, folder, progress)
        self._attention.bind(page_tokens, folder, progress)
        # What captured steps use stays where it is.
        self._attention.reserve(sampled_rows)
        for problem in self._problems:
            if problem.out == torch.float32:
                self._sampling_workspace(sampled_rows, problem.columns)

    def allocate_kv(
        self, layers: int, pages: int, page_tokens: int, heads: HeadLayout
    ) -> tuple[KvLayer, ...]:
        shape = attention.kv_shape(pages, page_tokens, heads)
        self._attention.prepare(heads, page_tokens, self._act)

        def zeros() -> Tensor:
            return torch.zeros(shape, dtype=self._act, device=self._device)

        return tuple(KvLayer(zeros(), zeros(), page_tokens) for _ in range(layers))

    def kv_bytes_per_token(self, layers: int, heads: HeadLayout) -> int:
        return layers * 2 * heads.kv_width * self._act.itemsize

    # Forward

    def share_out(self, batch: RaggedBatch, host: RaggedBatch | None) -> RaggedBatch:
        return replace(batch, work=self._attention.share_out(batch, host))

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return embedding.embed(token_ids, table)

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        assert isinstance(weight, GpuLinear), "the weight was packed by other operators"
        return self.products.run(x, weight)

    def row_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        return self.linear(x, weight)

    def logits(self, x: Tensor, weight: PackedLinear) -> Tensor:
        assert isinstance(weight, GpuLinear), "the weight was packed by other operators"
        return self.products.run(x, weight)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return norm.add_rms_norm(x, residual, weight, eps)

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
        return rope_store.norm_rope_store(
            qkv,
            heads,
            query_norm,
            key_norm,
            eps,
            rope,
            batch.positions,
            batch.slots,
            batch.row_faults,
            kv.keys,
            kv.values,
        )

    def attention(
        self, queries: Tensor, heads: HeadLayout, scale: float, batch: RaggedBatch, kv: KvLayer
    ) -> Tensor:
        return self._attention.run(queries, heads, scale, batch, kv)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return activation.silu_mul(gate_up)

    def gated_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        assert isinstance(weight, GpuLinear), "the weight was packed by other operators"
        fused = self.products.run_gated(x, weight)
        return activation.silu_mul(self.products.run(x, weight)) if fused is None else fused

    # Sampling stage

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        return log_sum_exp.log_sum_exp(logits)

    def token_logprobs(self, logits: Tensor, lse: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
        return log_sum_exp.token_logprobs(logits, lse, rows, token_ids)

    def top_tokens(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return top.top_tokens(logits, count)

    def sample(self, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
        needs = batch.found_needs()
        wants = Wants(patched=needs.penalties or needs.bias or needs.exclusions, filtered=needs.filters)
        workspace = self._sampling_workspace(*logits.shape)
        return sampling.sample(logits, batch, want_processed, wants=wants, workspace=workspace)

    def _sampling_workspace(self, rows: int, vocabulary: int) -> SamplingWorkspace:
        """Storage that every call shares, for calls run one after another; larger where a call needs more."""
        found = self._workspace
        if found is None or found.orders.shape[0] < rows or found.orders.shape[1] != vocabulary:
            found = self._workspace = sampling_workspace(rows, vocabulary, self._device)
        return found

    # Self-test

    def probe_digests(self, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
        """The clauses' references decide; other kernels are proven to give the same."""
        if not self._promises:
            return {}
        fresh = GpuOperators(self._device, self._act, self._split_tokens, ProvenProducts(self._device))
        return probe_digests(fresh, dtypes) | {"attention split": f"{self._split_tokens} keys"}


def make_gpu_operators(
    profile: str, device: torch.device, dtype: torch.dtype, split_tokens: int
) -> GpuOperators:
    """The operators of `exact`, or of `unpinned`: the same engine with every freedom that costs bits."""
    if profile == "unpinned":
        return GpuOperators(device, dtype, split_tokens, FreeProducts(), promises=False)
    return GpuOperators(device, dtype, split_tokens, ProvenProducts(device))
