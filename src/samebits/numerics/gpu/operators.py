"""The profiles `exact`, `tp-invariant` and `unpinned` on a GPU, behind the Operators interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
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
from samebits.numerics.gpu.bindings import ALONE, Sharing
from samebits.numerics.gpu.buckets import buckets_up_to
from samebits.numerics.gpu.foreseen import ModelSizes, compile_foreseen
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.products import FreeProducts, GpuLinear, Products, ProvenProducts, pack_linear
from samebits.numerics.gpu.rank_group import RankGroup
from samebits.numerics.gpu.rank_proof import prove_sums
from samebits.numerics.gpu.row_products import TreeLinear, TreeProducts, leaves_of_rank, pack_tree
from samebits.numerics.gpu.sampling import SamplingWorkspace, Wants, sampling_workspace
from samebits.numerics.gpu.tree_operator import TreeProblem
from samebits.numerics.operators import HeadLayout, KvLayer, PackedLinear
from samebits.numerics.probes import probe_digests, probe_row_linear
from samebits.numerics.vocabulary import VocabularyLinear

ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)
TREE_PROBE_DEPTH = 2048


class GpuOperators:
    """Numerics on one GPU. Activations have the weights' dtype. `group` holds the ranks that share the model, each on
    a GPU of its own (None: there is one); `leaves` has row-parallel products reduced as `tp-invariant` does."""

    def __init__(
        self,
        device: torch.device,
        act: torch.dtype,
        split_tokens: int,
        products: Products,
        promises: bool = True,
        group: RankGroup | None = None,
        leaves: bool = False,
    ) -> None:
        if act not in ACTIVATIONS:
            raise NumericsError(f"activations on a GPU are bfloat16, float16 or float32, not {act}")
        self._device = device
        self._act = act
        self._split_tokens = split_tokens
        self.products = products
        self._promises = promises
        self._group = group
        self._ranks = 1 if group is None else group.size
        if leaves:
            leaves_of_rank(self._ranks)
        self._trees = TreeProducts(device) if leaves else None
        self._problems: list[GemmProblem] = []
        self._row_parallel: list[TreeLinear | GpuLinear] = []
        self._vocabulary = 0
        self._workspaces: dict[bool, SamplingWorkspace] = {}
        self._attention = AttentionScheduler(device, split_tokens, pinned=promises)

    @property
    def profile(self) -> str:
        if self._trees is not None:
            return "tp-invariant"
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
            **({} if self._group is None else {"sums over ranks": self._group.describe()}),
        }

    def compile(self, progress: Callable[[str, int, int], None]) -> None:
        """Kernels are compiled when the shapes are known."""

    # Set-up

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> GpuLinear:
        return self._pack(weight, bias, self._act)

    def pack_row_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        if self._ranks == 1 and self._trees is None:
            return self.pack_linear(weight, bias)
        if bias is not None:
            raise NumericsError(
                "a bias of a row-parallel product has no kernel on a GPU with several ranks, or under tp-invariant"
            )
        packed: TreeLinear | GpuLinear
        if self._trees is None:
            packed = self.pack_linear(weight)
        else:
            packed = pack_tree(weight, self._device, self._act, self._ranks)
        self._row_parallel.append(packed)
        return packed

    def pack_output(self, weight: Tensor, vocabulary: int) -> PackedLinear:
        self._vocabulary = vocabulary
        shard = self._pack(weight, None, torch.float32)
        return shard if self._ranks == 1 else VocabularyLinear(shard, vocabulary)

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

        group = self._group
        sharing = ALONE if group is None else Sharing(group.rank, group.size, group.meet)
        buckets = partial(self._buckets, step_rows, sampled_rows)
        self.products.bind(self._problems, buckets, folder, progress, sharing)
        activation.estimates_serve(self._act, self._device)  # proven once, before any step
        self._attention.bind(page_tokens, folder, progress, sharing)
        most_rows = buckets_up_to(max(step_rows, sampled_rows))
        if self._trees is not None:
            trees = [one.problem for one in self._row_parallel if isinstance(one, TreeLinear)]
            self._trees.bind(trees, most_rows, folder, progress, sharing, self._pushes)
        # What captured steps use stays where it is.
        self._attention.reserve(sampled_rows)
        if self._vocabulary:
            for rows in {min(sampled_rows, sampling.FEW_ROWS), sampled_rows}:
                self._sampling_workspace(rows, self._vocabulary)
        if self._group is not None:
            held = [problem.columns for problem in self._problems if problem.out == torch.float32]
            width = max((one.out_features for one in self._row_parallel), default=0)
            rows = width * self._part_type.itemsize * most_rows[-1]
            self._group.reserve(max(rows, 4 * sampled_rows * max(held, default=0)))
            if self._promises and width:
                tree = self._trees is not None
                prove_sums(self._group, width, self._part_type, self._act, tree, self._device)

    def foresee(self, sizes: ModelSizes) -> None:
        """Begin to compile what every start of a model of these sizes launches, before its weights are loaded."""
        if self._promises:
            compile_foreseen(sizes, self._act, self._split_tokens, self._device)

    def compile_ahead(self, step_rows: int, sampled_rows: int, page_tokens: int, folder: Path) -> None:
        """Begin to compile what `bind` will prove, and wait for nothing. Ranks share that work, and begin together."""
        if self._group is None:
            buckets = partial(self._buckets, step_rows, sampled_rows)
            self.products.compile_ahead(self._problems, buckets, folder)
            self._attention.compile_ahead(page_tokens, folder)

    def _buckets(self, step_rows: int, sampled_rows: int, problem: GemmProblem) -> Sequence[int]:
        """The row counts of a product, for steps of up to `step_rows` of which up to `sampled_rows` get logits."""
        gives_logits = problem.out == torch.float32 != self._act
        return buckets_up_to(sampled_rows if gives_logits else max(step_rows, sampled_rows))

    def _pushes(self, problem: TreeProblem, rows: int) -> bool:
        """Whether ranks are better served where a product of so many rows writes to those who add."""
        size = rows * problem.columns * problem.out.itemsize
        return self._group is not None and self._group.pushes(rows, size)

    @property
    def _part_type(self) -> torch.dtype:
        """Type in which a rank's part of a row-parallel product travels."""
        return self._act if self._trees is None else torch.float32

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

    def second_way(self, rows: int, contexts: np.ndarray | None = None) -> bool:
        return self._attention.second_way(rows, contexts)

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        if self._group is None:
            return embedding.embed(token_ids, table)
        held, width = table.shape
        part = self._group.part((token_ids.shape[0], width), table.dtype)
        # Ids of other ranks are none of this table's: their rows are zeros, and nobody reads them.
        embedding.embed(token_ids - held * self._group.rank, table, part)
        return self._group.gather_rows(part, token_ids, held)

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        assert isinstance(weight, GpuLinear), "the weight was packed by other operators"
        return self.products.run(x, weight)

    def row_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        if self._group is None:
            return self._row_product(x, weight, None)
        part, pushed = self._row_part(x, weight, self._group)
        return self._group.all_reduce(part, self._act, pushed)

    def row_linear_add_norm(
        self,
        x: Tensor,
        weight: PackedLinear,
        residual: Tensor,
        norm_weight: Tensor,
        eps: float,
        whole: bool = True,
    ) -> tuple[Tensor, Tensor]:
        if self._group is None:
            if isinstance(weight, GpuLinear) and self.products.run_onto(x, weight, residual):
                return self.rms_norm(residual, norm_weight, eps), residual
            return self.add_rms_norm(self._row_product(x, weight, None), residual, norm_weight, eps)
        part, pushed = self._row_part(x, weight, self._group)
        return self._group.all_reduce_add_norm(part, residual, norm_weight, eps, pushed, whole)

    def _row_part(self, x: Tensor, weight: PackedLinear, group: RankGroup) -> tuple[Tensor, bool]:
        """This rank's part of a row-parallel product, and whether it was written to the ranks that add it."""
        rows = x.shape[0]
        part = group.part((rows, weight.out_features), self._part_type)
        if isinstance(weight, TreeLinear) and self._trees is not None:
            product = self._trees.pushed(weight, rows)
            if product is not None:
                product.run(x, weight.weight, group.owners(rows))
                return part, True
        return self._row_product(x, weight, part), False

    def _row_product(self, x: Tensor, weight: PackedLinear, out: Tensor | None) -> Tensor:
        if isinstance(weight, TreeLinear):
            assert self._trees is not None
            return self._trees.run(x, weight, out)
        assert isinstance(weight, GpuLinear), "the weight was packed by other operators"
        return self.products.run(x, weight, out)

    def logits(self, x: Tensor, weight: PackedLinear) -> Tensor:
        if isinstance(weight, GpuLinear):
            return self.products.run(x, weight)
        assert isinstance(weight, VocabularyLinear), "the weight was packed by other operators"
        assert isinstance(weight.shard, GpuLinear) and self._group is not None
        part = self._group.part((x.shape[0], weight.shard.out_features), torch.float32)
        return self._group.gather_columns(self.products.run(x, weight.shard, part), weight.vocabulary)

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
        self,
        queries: Tensor,
        heads: HeadLayout,
        scale: float,
        batch: RaggedBatch,
        kv: KvLayer,
        only_wanted: bool = False,
    ) -> Tensor:
        return self._attention.run(queries, heads, scale, batch, kv, only_wanted)

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
        """Storage that calls of few rows share, or of many, for calls run one after another; larger where a call needs
        more."""
        few = rows <= sampling.FEW_ROWS
        found = self._workspaces.get(few)
        if found is None or found.rows < rows or found.orders.shape[1] != vocabulary:
            room = sampling.FEW_ROWS if few else rows
            found = self._workspaces[few] = sampling_workspace(room, vocabulary, self._device)
        return found

    # Self-test

    def probe_digests(self, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
        """The clauses' references decide; other kernels are proven to give the same."""
        if not self._promises:
            return {}
        trees = self._trees is not None
        products = ProvenProducts(self._device)
        fresh = GpuOperators(self._device, self._act, self._split_tokens, products, leaves=trees)
        digests = probe_digests(fresh, dtypes) | {"attention split": f"{self._split_tokens} keys"}
        if trees:  # of the whole K: the same at every degree
            digests["row-parallel gemm"] = probe_row_linear(fresh, dtypes, TREE_PROBE_DEPTH, with_bias=False)
        return digests


def make_gpu_operators(
    profile: str,
    device: torch.device,
    dtype: torch.dtype,
    split_tokens: int,
    group: RankGroup | None = None,
) -> GpuOperators:
    """The operators of `exact` or `tp-invariant`, or of `unpinned`: the same engine with every freedom that costs
    bits."""
    if profile == "unpinned":
        return GpuOperators(device, dtype, split_tokens, FreeProducts(), promises=False, group=group)
    products = ProvenProducts(device)
    return GpuOperators(device, dtype, split_tokens, products, group=group, leaves=profile == "tp-invariant")
