"""The exact profile on CPU, behind the Operators interface: checks, shares of the work, and launches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.batch import RaggedBatch, SampleResult, SamplingBatch
from samebits.numerics.collectives.group import SOLO, Group
from samebits.numerics.contract import CONTRACT
from samebits.numerics.cpu import attention, elementwise, gemm, keyvalue, norm, row_parallel, sampling, top
from samebits.numerics.cpu.attention_plan import plan_attention, prepare_plan
from samebits.numerics.cpu.checks import check_batch, check_heads, check_matrix, float_bits, widened
from samebits.numerics.cpu.environment import machine, require_fma
from samebits.numerics.cpu.pool import Pool, prepare_launcher
from samebits.numerics.operators import HeadLayout, KvLayer, PackedLinear
from samebits.numerics.probes import probe_digests, probe_row_linear
from samebits.numerics.vocabulary import VocabularyLinear, embed_over_ranks, join_logits

PROFILES = ("exact", "tp-invariant")

# A task smaller than this (in elements touched) does not pay for another thread.
ELEMENTS_OF_A_TASK = 16384
ATTENTION_WORTH = 50_000


class CpuOperators:
    """Numerics profiles `exact` and `tp-invariant` on CPU. `threads` = 0 takes every core that this process may
    use; bits do not depend on it. `pool` replaces the threads by something else that runs tasks, such as an
    emulated processor. `group` holds the ranks that share the model. Safe to use from several threads (launches
    take turns)."""

    def __init__(
        self, threads: int = 0, pool: Pool | None = None, profile: str = "exact", group: Group = SOLO
    ) -> None:
        require_fma()
        if profile not in PROFILES:
            raise NumericsError(f"numerics profile must be one of {', '.join(PROFILES)}, not {profile!r}")
        self._profile = profile
        self._group = group
        self._leaves = row_parallel.leaves_of_rank(group.size) if self._joins_as_tree else 1
        if threads < 0:
            raise NumericsError(f"threads must be 0 (all cores) or positive, not {threads}")
        self._pool = pool or Pool(threads or available_cores())

    @property
    def profile(self) -> str:
        return self._profile

    @property
    def _joins_as_tree(self) -> bool:
        return self._profile == "tp-invariant"

    @property
    def promises_bits(self) -> bool:
        return True

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def activation_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def threads(self) -> int:
        return self._pool.threads

    def description(self) -> dict[str, str]:
        return {
            "device": "cpu",
            "architecture": machine(),
            "atom": "float32 fused multiply-add",
            "threads": str(self._pool.threads),
            "numba": numba.__version__,
        }

    def compile(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Compile every kernel now, or take it from the cache on disk; calls progress(name, number, total)."""
        steps = compilation_steps()
        for number, (name, step) in enumerate(steps.items()):
            if progress is not None:
                progress(name, number, len(steps))
            step()
        if progress is not None:
            progress("done", len(steps), len(steps))

    def close(self) -> None:
        """End the worker threads; operators then run in the calling thread."""
        self._pool.close()

    # Set-up

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> gemm.CpuLinear:
        return gemm.pack_linear(weight, bias)

    def pack_row_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        if self._group.size == 1 and self._leaves == 1:
            return gemm.pack_linear(weight, bias)
        return row_parallel.pack_row_parallel(weight, bias, self._leaves)

    def pack_output(self, weight: Tensor, vocabulary: int) -> PackedLinear:
        if self._group.size == 1:
            return gemm.pack_linear(weight, None)
        return VocabularyLinear(gemm.pack_linear(weight, None), vocabulary)

    def allocate_kv(
        self, layers: int, pages: int, page_tokens: int, heads: HeadLayout
    ) -> tuple[KvLayer, ...]:
        check_heads(heads)
        if page_tokens <= 0 or page_tokens % CONTRACT.key_block_tokens:
            raise NumericsError(
                f"page_tokens must be a multiple of {CONTRACT.key_block_tokens}, not {page_tokens}"
            )
        shape = (pages, heads.kv_heads, page_tokens, heads.head_dim)
        return tuple(KvLayer(torch.zeros(shape), torch.zeros(shape), page_tokens) for _ in range(layers))

    def kv_bytes_per_token(self, layers: int, heads: HeadLayout) -> int:
        return layers * 2 * heads.kv_width * 4

    @property
    def captures(self) -> bool:
        return False

    # Forward

    def share_out(self, batch: RaggedBatch, host: RaggedBatch | None) -> RaggedBatch:
        return batch

    def _run_rows(self, kernel: int, arguments: tuple[int, ...], rows: int, width: int) -> None:
        """Launch a kernel whose last argument is the number of rows of a task."""
        block = max(1, min(-(-rows // self._pool.threads), ELEMENTS_OF_A_TASK // max(width, 1)))
        if rows * width <= ELEMENTS_OF_A_TASK:
            block = rows
        self._pool.run(kernel, (*arguments, block), -(-rows // block))

    def second_way(self, rows: int, contexts: np.ndarray | None = None) -> bool:
        return False

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        held, width = table.shape
        if table.dtype not in gemm.STORAGE or not table.is_contiguous() or width % 16:
            raise NumericsError(
                f"embedding table must be contiguous, bf16, fp16 or fp32, of a width that is a multiple of 16; "
                f"it is {table.dtype} {list(table.shape)}"
            )
        token_ids = token_ids.contiguous()
        if token_ids.shape[0] == 0:
            return torch.empty((0, width))
        low, high = torch.aminmax(token_ids)
        vocabulary = held * self._group.size
        if low < 0 or high >= vocabulary:
            raise NumericsError(
                f"token ids must be in 0 .. {vocabulary - 1}, found {int(low)} .. {int(high)}"
            )
        if self._group.size == 1:
            return self._look_up(token_ids, table)
        return embed_over_ranks(self._group, token_ids, held, lambda own: self._look_up(own, table))

    def _look_up(self, token_ids: Tensor, table: Tensor) -> Tensor:
        rows, width = token_ids.shape[0], table.shape[1]
        y = torch.empty((rows, width))
        kernel = elementwise.EMBED[gemm.STORAGE[table.dtype]]
        arguments = (token_ids.data_ptr(), table.data_ptr(), y.data_ptr(), rows, width)
        self._run_rows(kernel.address, arguments, rows, width)
        return y

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        assert isinstance(weight, gemm.CpuLinear), "the weight was packed by other operators"
        y = torch.empty((x.shape[0], weight.out_features))
        self._multiply(x, weight, y)
        return y

    def _multiply(self, x: Tensor, weight: gemm.CpuLinear, y: Tensor) -> None:
        """The GEMM clause into y [rows, out]."""
        rows, depth = check_matrix("linear input", x, weight.in_features)
        columns = weight.out_features
        if rows == 0:
            return
        share = gemm.share_out(rows, columns, depth, self._pool.threads)
        bias = 0 if weight.bias is None else weight.bias.data_ptr()
        arguments = (
            x.data_ptr(),
            weight.panels.data_ptr(),
            y.data_ptr(),
            bias,
            rows,
            columns,
            depth,
            share.row_block,
            share.depth_block,
            share.panel_block,
            share.panel_tasks,
        )
        self._pool.run(gemm.KERNELS[weight.storage].address, arguments, share.tasks)

    def row_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        if isinstance(weight, gemm.CpuLinear):
            return self.linear(x, weight)
        assert isinstance(weight, row_parallel.RowParallelLinear), "the weight was packed by other operators"
        rows, _ = check_matrix("linear input", x, weight.in_features)
        parts = torch.empty((len(weight.leaves), rows, weight.out_features))
        start = 0
        for leaf, y in zip(weight.leaves, parts, strict=True):
            self._multiply(x[:, start : start + leaf.in_features].contiguous(), leaf, y)
            start += leaf.in_features
        partial = parts[0] if len(parts) == 1 else self._join(parts, None)
        return self._join(self._group.all_gather(partial), weight.bias)

    def _join(self, parts: Tensor, bias: Tensor | None) -> Tensor:
        """Leaves or ranks [parts, rows, columns] into one [rows, columns], as the profile says."""
        count, rows, columns = parts.shape
        y = torch.empty((rows, columns))
        if rows:
            arguments = (
                parts.data_ptr(),
                y.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                count,
                rows,
                columns,
                int(self._joins_as_tree),
            )
            self._run_rows(row_parallel.JOIN.address, arguments, rows, columns * count)
        return y

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
        if not isinstance(weight, VocabularyLinear):
            return self.linear(x, weight)
        return join_logits(self._group, self.linear(x, weight.shard), weight.vocabulary)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, width = check_matrix("norm input", x)
        y = torch.empty((rows, width))
        self._norm(x, 0, weight, y, 0, rows, width, eps)
        return y

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows, width = check_matrix("norm input", x)
        check_matrix("residual", residual, width)
        y, total = torch.empty((rows, width)), torch.empty((rows, width))
        self._norm(x, residual.data_ptr(), weight, y, total.data_ptr(), rows, width, eps)
        return y, total

    def _norm(
        self,
        x: Tensor,
        residual: int,
        weight: Tensor,
        y: Tensor,
        total: int,
        rows: int,
        width: int,
        eps: float,
    ) -> None:
        scale = widened(weight)
        if scale.shape != (width,):
            raise NumericsError(f"norm weight has shape {list(scale.shape)}, the rows are {width} wide")
        if rows:
            arguments = (
                x.data_ptr(),
                residual,
                scale.data_ptr(),
                y.data_ptr(),
                total,
                rows,
                width,
                float_bits(eps),
            )
            self._run_rows(norm.RMS_NORM.address, arguments, rows, width)

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
        rows, width = check_matrix("qkv", qkv, heads.query_width + 2 * heads.kv_width)
        queries = torch.empty((rows, heads.query_heads, heads.head_dim))
        if rows == 0:
            return queries
        if (query_norm is None) != (key_norm is None):
            raise NumericsError("query and key norm must be given together")
        query_scale = None if query_norm is None else widened(query_norm)
        key_scale = None if key_norm is None else widened(key_norm)
        check_batch(batch, kv, rows)
        if rope.dtype != torch.float32 or not rope.is_contiguous() or 2 * rope.shape[2] > heads.head_dim:
            raise NumericsError(f"RoPE table does not fit head_dim {heads.head_dim}: {list(rope.shape)}")
        arguments = (
            qkv.data_ptr(),
            queries.data_ptr(),
            heads.query_heads,
            heads.kv_heads,
            heads.head_dim,
            0 if query_scale is None else query_scale.data_ptr(),
            0 if key_scale is None else key_scale.data_ptr(),
            float_bits(eps),
            rope.data_ptr(),
            rope.shape[2],
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            batch.row_faults.data_ptr(),
            kv.keys.data_ptr(),
            kv.values.data_ptr(),
            kv.page_tokens,
            rows,
        )
        self._run_rows(keyvalue.NORM_ROPE_STORE.address, arguments, rows, width)
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
        rows = queries.shape[0]
        check_matrix("queries", queries.view(rows, -1), heads.query_width)
        output = torch.empty((rows, heads.query_width))
        if rows == 0:
            return output
        check_batch(batch, kv, rows)
        group = heads.query_heads // heads.kv_heads
        plan = plan_attention(
            batch.query_start.data_ptr(),
            batch.positions.data_ptr(),
            rows,
            batch.requests,
            group,
            batch.page_table.shape[1] * batch.page_tokens,
            2 * self._pool.threads * heads.kv_heads if self._pool.threads > 1 else 0,
        )
        partials = torch.empty(plan.partial_pairs * heads.kv_heads * (heads.head_dim + 16))
        arguments = (
            queries.data_ptr(),
            output.data_ptr(),
            kv.keys.data_ptr(),
            kv.values.data_ptr(),
            batch.positions.data_ptr(),
            batch.page_table.data_ptr(),
            batch.page_table.shape[1],
            kv.page_tokens,
            heads.query_heads,
            heads.kv_heads,
            heads.head_dim,
            float_bits(scale),
            plan.work.ctypes.data,
            partials.data_ptr(),
            plan.folds.ctypes.data,
        )
        shared = plan.cost * heads.kv_heads * heads.head_dim > ATTENTION_WORTH
        self._pool.run(attention.ATTENTION.address, arguments, plan.items * heads.kv_heads, shared)
        if plan.fold_items:
            tasks = plan.fold_items * heads.kv_heads
            self._pool.run(attention.ATTENTION_FOLD.address, arguments, tasks, False)
        return output

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, double = check_matrix("gate_up", gate_up)
        if double % 2:
            raise NumericsError(f"gate_up has {double} columns, an odd number")
        y = torch.empty((rows, double // 2))
        if rows:
            arguments = (gate_up.data_ptr(), y.data_ptr(), rows, double // 2)
            self._run_rows(elementwise.SILU_MUL.address, arguments, rows, double)
        return y

    def gated_linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        return self.silu_mul(self.linear(x, weight))

    # Sampling stage

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        rows, vocabulary = check_matrix("logits", logits)
        y = torch.empty(rows)
        if rows:
            arguments = (logits.data_ptr(), y.data_ptr(), vocabulary)
            shared = rows * vocabulary > ELEMENTS_OF_A_TASK
            self._pool.run(elementwise.LOG_SUM_EXP.address, arguments, rows, shared)
        return y

    def token_logprobs(self, logits: Tensor, lse: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
        return top.token_logprobs(self._pool, logits, lse, rows, token_ids)

    def top_tokens(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return top.top_tokens(self._pool, logits, count)

    def sample(self, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
        return sampling.sample(self._pool, logits, batch, want_processed)

    # Self-test

    def probe_digests(self, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
        digests = probe_digests(self, dtypes)
        if self._joins_as_tree:  # of the whole K: the same at every degree
            whole = CpuOperators(pool=self._pool, profile=self._profile)
            digests["row-parallel gemm"] = probe_row_linear(whole, dtypes)
        return digests


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compilation_steps() -> dict[str, Callable[[], object]]:
    """What `compile` does, by name: each step compiles one kernel or loads it from the cache on disk."""
    kernels = {f"gemm {storage}": kernel for storage, kernel in gemm.KERNELS.items()}
    kernels["join of leaves and ranks"] = row_parallel.JOIN
    kernels["attention"] = attention.ATTENTION
    kernels["attention fold"] = attention.ATTENTION_FOLD
    kernels["norm"] = norm.RMS_NORM
    kernels["rope and store"] = keyvalue.NORM_ROPE_STORE
    kernels["gated activation"] = elementwise.SILU_MUL
    kernels["log-sum-exp"] = elementwise.LOG_SUM_EXP
    kernels["sampling"] = sampling.SAMPLE
    kernels["top tokens"] = top.TOP_TOKENS
    kernels["token logprobs"] = top.TOKEN_LOGPROBS
    kernels.update({f"embedding {storage}": kernel for storage, kernel in elementwise.EMBED.items()})
    steps: dict[str, Callable[[], object]] = {name: kernel.prepare for name, kernel in kernels.items()}
    return {"launcher": prepare_launcher, "attention plan": prepare_plan, **steps}
