"""Planning and launching attention whose splits are claimed (decode on Hopper)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samebits.numerics.gpu import attention_claims as claims
from samebits.numerics.gpu.attention_plan import Units
from samebits.numerics.gpu.attention_prefill import describe
from samebits.numerics.gpu.attention_shape import AttentionShape, Context, softmax_factor
from samebits.numerics.gpu.configuration import Launch, Start, named_source, start
from samebits.numerics.gpu.launch import KernelSource, load, pointer, swizzled_descriptor

REGISTERS = 152
"""of a thread at the start; the kernel deals them out among its warps"""
PIECE_TOKENS = 16
"""Keys that are copied at once where a context ends within a key block."""
MOST_SPLITS = 8
"""Splits of a run, at most, where partials have room for shorter ones."""
RUNS_OF_PROGRAM = 6
"""Runs are shorter where a program had fewer than these to do."""


@dataclass(frozen=True)
class ClaimBuffers:
    """Fixed-address storage of claimed splits. Made once, and used by one stream at a time."""

    split_start: Tensor
    """int32 [units + 1]"""
    table: Tensor
    """int32 [1 + entries, CLAIM_WORDS]"""
    state: Tensor
    """int32 [2]: claims taken, zero between launches; and the epoch of the launch before"""
    words: Tensor
    """int64: the storage of all partials"""
    tops: Tensor
    """int64 [capacity, stride], of `words`"""
    totals: Tensor
    """int64 [capacity, stride], of `words`"""
    accumulators: Tensor
    """int64 [capacity, stride, head_dim], of `words`"""


def claim_buffers(
    shape: AttentionShape, units: int, tokens: int, programs: int, capacity: int, device: torch.device
) -> ClaimBuffers:
    """Room for `units` units of at most `tokens` rows, and for partials of `capacity` runs (of one kv head each): with
    more than that runs are longer."""
    stride, width = tokens * shape.group, shape.heads.head_dim
    size = capacity * stride
    entries = (capacity + programs) // shape.heads.kv_heads + units
    words = torch.zeros(size * (width + 2), dtype=torch.int64, device=device)
    return ClaimBuffers(
        torch.zeros(units + 1, dtype=torch.int32, device=device),
        torch.zeros((1 + entries, int(claims.CLAIM_WORDS)), dtype=torch.int32, device=device),
        torch.zeros(2, dtype=torch.int32, device=device),
        words,
        words[:size].view(capacity, stride),
        words[size : 2 * size].view(capacity, stride),
        words[2 * size :].view(capacity, stride, width),
    )


def plan(
    shape: AttentionShape,
    positions: Tensor,
    page_table: Tensor,
    units: Units,
    buffers: ClaimBuffers,
    programs: int,
    start: Start = start,
) -> None:
    """Write down the claims of a step, on the device; once a step, before the first layer. positions int64 [rows];
    page_table int32 [requests, pages of a request]."""
    start(
        claims.plan_claims,
        (programs,),
        positions,
        units.first,
        units.count,
        units.request,
        buffers.split_start,
        buffers.table,
        buffers.words,
        buffers.state,
        page_table,
        units.units,
        buffers.tops.shape[0],
        buffers.words.numel(),
        page_table.stride(0),
        KV_HEADS=shape.heads.kv_heads,
        PAGE=shape.page_tokens,
        KEYS=shape.key_block_tokens,
        SPLIT=shape.split_tokens,
        MOST=MOST_SPLITS,
        RUNS=RUNS_OF_PROGRAM,
        launch=Launch(warps=4, stages=1),
    )


def attend(
    source: KernelSource,
    shape: AttentionShape,
    queries: Tensor,
    context: Context,
    units: Units,
    scale: float,
    output: Tensor,
    buffers: ClaimBuffers,
    programs: int,
) -> Tensor:
    """Attention of the rows named by `units` after `plan`; other rows of `output` are not touched."""
    load(source).launch(
        (programs, 1, 1),
        queries,
        describe(shape, context.keys),
        describe(shape, context.values),
        describe(shape, context.keys, PIECE_TOKENS),
        describe(shape, context.values, PIECE_TOKENS),
        output,
        context.positions,
        units.first,
        units.count,
        buffers.split_start,
        buffers.table,
        buffers.state,
        context.page_table,
        buffers.tops,
        buffers.totals,
        buffers.accumulators,
        units.units,
        context.page_table.stride(0),
        softmax_factor(scale),
    )
    return output


def claims_source(
    shape: AttentionShape, dtype: torch.dtype, stride: int, stages: int, together: int, beside: int
) -> KernelSource:
    """The binary that `attend` launches for units of at most `stride` rows (tokens times group), which folds `together`
    partials at a time and `beside` rows side by side, or as many as four warps have columns for."""
    from samebits.numerics.gpu.attention_claims_hopper import attention_claims_hopper

    act, wide, narrow = pointer(dtype), pointer(torch.int64), pointer(torch.int32)
    storage, pieces = (
        swizzled_descriptor(dtype, (tokens, shape.width)) for tokens in (shape.key_block_tokens, PIECE_TOKENS)
    )
    storages = (storage, storage, pieces, pieces)
    arguments = (act, *storages, act, wide, *(narrow,) * 6, wide, wide, wide, "i32", "i32", "fp32")
    constants = {
        "STRIDE": stride,
        "STAGES": stages,
        "TOGETHER": together,
        "BESIDE": beside,
        **shape.constants(),
    }
    return replace(
        named_source(attention_claims_hopper, arguments, constants, Launch(4, 1)), registers=REGISTERS
    )
