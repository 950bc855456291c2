"""What attention kernels are launched with, and launching the reference and shared ranges (decode, verify)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from samebits.numerics.gpu import attention_claimed as claimed
from samebits.numerics.gpu import attention_ranges as ranges
from samebits.numerics.gpu import configuration
from samebits.numerics.gpu.attention_claimed import ClaimBuffers
from samebits.numerics.gpu.attention_plan import Units
from samebits.numerics.gpu.attention_reference import attention_reference
from samebits.numerics.gpu.attention_shape import SMALLEST_TILE, AttentionShape, Context, softmax_factor
from samebits.numerics.gpu.configuration import Launch, Start, named_source, start
from samebits.numerics.gpu.launch import KernelSource, load, pointer, target_name
from samebits.numerics.operators import HeadLayout


def kv_shape(pages: int, page_tokens: int, heads: HeadLayout) -> tuple[int, int, int, int]:
    """Shape of one layer's keys, and of its values. Storage must be zeroed before its first use."""
    return pages, heads.kv_heads, page_tokens, heads.head_dim


def reference(
    shape: AttentionShape,
    queries: Tensor,
    context: Context,
    row_request: Tensor,
    scale: float,
    output: Tensor,
) -> Tensor:
    """The clause's reference on this device. queries and output act [rows, query_heads, head_dim];
    row_request int32 [rows]: each row's place in the page table."""
    rows = queries.shape[0]
    if rows:
        load(reference_source(shape, queries.dtype)).launch(
            (rows, shape.heads.kv_heads, 1),
            queries,
            context.keys,
            context.values,
            output,
            context.positions,
            row_request,
            context.page_table,
            context.page_table.stride(0),
            softmax_factor(scale),
        )
    return output


def reference_source(shape: AttentionShape, dtype: torch.dtype) -> KernelSource:
    """The binary that `reference` launches."""
    act, wide, narrow = pointer(dtype), pointer(torch.int64), pointer(torch.int32)
    arguments = (act, act, act, act, wide, narrow, narrow, "i32", "fp32")
    constants = {"ROWS": shape.rows_for(1), **shape.constants()}
    return named_source(attention_reference, arguments, constants, Launch(warps=4, stages=1))


@dataclass(frozen=True)
class RangeLaunch:
    """How the shared ranges are walked. `programs` is the number of ranges; `polls`: how often a program that
    has nothing else to do looks whether it can help to fold a cut pair."""

    programs: int
    rows: int = SMALLEST_TILE
    warps: int = 2
    stages: int = 3
    polls: int = 32
    specialised: bool = False
    """the kernel for Hopper, in which runs of splits are claimed, one program a multiprocessor"""
    together: int = 32
    """partials that it folds at a time"""
    beside: int = 1
    """rows that it folds side by side"""


SPECIALISED_ROWS = 8
"""Query rows of a tile of the kernel for Hopper."""
SPECIALISED_STAGES = 3
"""Its ring holds so many times the keys or the values of a split: what a multiprocessor has room for."""
MOST_PROGRAMS = 4
"""Programs a multiprocessor that a launch has at most."""
FEW_UNITS = 4
"""Up to these, two programs a multiprocessor are faster than four."""
CLAIMED_UNITS = 24
"""Up to these the kernel for Hopper is the faster one at any length; beyond, not where `ranges_pay`."""
SHORT_HALF_SPLITS = 3
"""Of contexts of fewer half splits on average claims are slower: what each costs by itself is not hidden behind its
keys."""
PARTIAL_UNITS = 48
"""Up to these a partial for each split of every cut pair is the faster way; beyond, folds that are handed on are."""


def specialised_ranges(shape: AttentionShape, dtype: torch.dtype, tokens: int) -> bool:
    """Whether this process's GPU has the kernel for Hopper, for units of at most `tokens` rows."""
    return (
        dtype != torch.float32
        and shape.heads.head_dim in (64, 128)
        and (shape.key_block_tokens, shape.split_tokens) == (64, 256)
        and tokens * shape.group <= SPECIALISED_ROWS
        and configuration.dependent_launches()
        and target_name() == "sm_90"
    )


def two_programs_pay(shape: AttentionShape, units: int, processors: int, pinned: bool) -> bool:
    """Whether two programs a multiprocessor, which keep two key blocks each on their way, are faster than four that
    keep one: for few units, and with folds that are handed on (`pinned`) also from where two of them share a pair to
    where whole pairs nearly fill four."""
    pairs, programs = units * shape.heads.kv_heads, 2 * processors
    return units <= FEW_UNITS or (pinned and 2 * programs <= 3 * pairs and 6 * pairs < 10 * programs)


def claiming_launch(rows: int, processors: int) -> RangeLaunch:
    """The launch of the kernel for Hopper that suits `rows` rows of query heads. Of few rows each has a program for
    itself, and long contexts, whose folds are to keep pace: many partials at a time. Of more rows, two at a time, and
    few partials, so that little is left to do after the last."""
    together, beside = (32, 1) if 2 * rows <= processors else (8, 2)
    return RangeLaunch(processors, SPECIALISED_ROWS, 4, SPECIALISED_STAGES, 0, True, together, beside)


def default_ranges(
    shape: AttentionShape, dtype: torch.dtype, tokens: int, units: int, processors: int, pinned: bool = True,
    ranged: bool = False,
) -> RangeLaunch:  # fmt: skip
    """A launch that suits a model's heads, for `units` units of at most `tokens` rows on a GPU of so many
    multiprocessors; `ranged`: for contexts of which `ranges_pay`. Where splits are not `pinned`, a portable one."""
    claims = pinned and specialised_ranges(shape, dtype, tokens)
    if claims and not (ranged and units > CLAIMED_UNITS):
        return claiming_launch(units * tokens * shape.heads.query_heads, processors)
    rows = shape.rows_for(tokens)
    kibibytes = shape.key_block_tokens * shape.width * dtype.itemsize >> 10
    if kibibytes > 16:
        return RangeLaunch(2 * processors, rows, warps=4, stages=2 if kibibytes <= 32 else 1)
    if two_programs_pay(shape, units, processors, pinned):
        return RangeLaunch(2 * processors, rows, warps=2, stages=3)
    return RangeLaunch(MOST_PROGRAMS * processors, rows, warps=2, stages=2)


def ranges_pay(shape: AttentionShape, contexts: np.ndarray, units: int, processors: int) -> bool:
    """Whether shared ranges are faster than claims, where there are both, for contexts int64 [requests], in tokens, in
    a launch for `units` units: where these are many and short, or more still, and claims would cut every pair."""
    if units <= CLAIMED_UNITS or not len(contexts):
        return False
    short = 2 * int(contexts.sum()) < shape.split_tokens * SHORT_HALF_SPLITS * len(contexts)
    return short or (units > PARTIAL_UNITS and claims_cut(shape, contexts, processors))


def claims_cut(shape: AttentionShape, contexts: np.ndarray, processors: int) -> bool:
    """Whether claims would be single splits, as `attention_claims.share_out` decides where partials have room: one pair
    is longer than what a multiprocessor has to do on average, and whole pairs do not come out nearly even."""
    splits, heads = -(-contexts // shape.split_tokens), shape.heads.kv_heads
    length, longest = int(splits.sum()) * heads, int(splits.max())
    most = -(-len(contexts) * heads // processors) * longest
    return length < processors * longest and 5 * most * processors > 6 * length


def default_launches(
    shape: AttentionShape, dtype: torch.dtype, tokens: int, processors: int
) -> list[RangeLaunch]:
    """Every launch that `default_ranges` chooses for some number of units, once: on both sides of the numbers at which
    it chooses another."""
    heads, programs = shape.heads.kv_heads, 2 * processors
    shared, filling = -(-2 * programs // (3 * heads)), -(-10 * programs // (6 * heads))
    counts = (1, FEW_UNITS + 1, CLAIMED_UNITS, CLAIMED_UNITS + 1, shared, filling, processors + 1)
    launches = (
        default_ranges(shape, dtype, tokens, units, processors, ranged=ranged)
        for units in counts
        for ranged in (False, True)
    )
    return list(dict.fromkeys(launches))


@dataclass(frozen=True)
class RangeBuffers:
    """Fixed-address storage of the shared ranges: which range begins where, and partials. Made once, and used by one
    stream at a time."""

    split_start: Tensor
    """int32 [units + 1]"""
    plans: Tensor
    """int32 [programs, 16]"""
    tops: Tensor
    """float32 [capacity, stride]"""
    totals: Tensor
    """float32 [capacity, stride]"""
    accumulators: Tensor
    """float32 [capacity, stride, head_dim]"""
    arrivals: Tensor
    """int32 [units * kv_heads, 2], zero between launches"""
    claims: ClaimBuffers | None = None
    """of launches whose splits are claimed"""

    @property
    def capacity(self) -> int:
        return self.tops.shape[0]

    @property
    def stride(self) -> int:
        return self.tops.shape[1]


def range_buffers(
    shape: AttentionShape,
    units: int,
    tokens: int,
    programs: int,
    capacity: int,
    device: torch.device,
    claims: int = 0,
) -> RangeBuffers:
    """Room for `units` units of at most `tokens` rows, and for partials of `capacity` splits (of one kv head
    each): a batch with more than that is shared out by whole pairs, which is slower where few requests are long.
    `claims`: the capacity of launches whose splits are claimed, where they may be used."""
    stride = tokens * shape.group
    return RangeBuffers(
        torch.zeros(units + 1, dtype=torch.int32, device=device),
        torch.zeros((programs, int(ranges.PLAN_WORDS)), dtype=torch.int32, device=device),
        torch.zeros((capacity, stride), device=device),
        torch.zeros((capacity, stride), device=device),
        torch.zeros((capacity, stride, shape.heads.head_dim), device=device),
        torch.zeros((units * shape.heads.kv_heads, 2), dtype=torch.int32, device=device),
        claimed.claim_buffers(shape, units, tokens, programs, claims, device) if claims else None,
    )


def plan_ranges(
    shape: AttentionShape,
    positions: Tensor,
    page_table: Tensor,
    units: Units,
    buffers: RangeBuffers,
    launch: RangeLaunch,
    start: Start = start,
) -> None:
    """Share out the splits of a step, on the device; once a step, before the first layer. positions int64 [rows];
    page_table int32 [requests, pages of a request]."""
    if launch.specialised:
        assert buffers.claims is not None, "these buffers have no room for claims"
        claimed.plan(shape, positions, page_table, units, buffers.claims, launch.programs, start)
        return
    start(
        ranges.plan_ranges,
        (launch.programs,),
        positions,
        units.first,
        units.count,
        units.request,
        buffers.split_start,
        buffers.plans,
        page_table,
        units.units,
        buffers.capacity,
        page_table.stride(0),
        KV_HEADS=shape.heads.kv_heads,
        PAGE=shape.page_tokens,
        SPLIT=shape.split_tokens,
        launch=Launch(warps=4, stages=1),
    )


def shared(
    shape: AttentionShape,
    queries: Tensor,
    context: Context,
    units: Units,
    scale: float,
    output: Tensor,
    buffers: RangeBuffers,
    launch: RangeLaunch,
    pinned: bool = True,
) -> Tensor:
    """Attention of the rows named by `units` after `plan_ranges`; other rows of `output` are not touched.

    `pinned=False` folds whatever a range holds into one partial: the split count follows the batch, and so do
    the bits (profile `unpinned`).
    """
    if units.units == 0:
        return output
    if launch.specialised:
        assert buffers.claims is not None, "these buffers have no room for claims"
        source = range_source(shape, queries.dtype, buffers.stride, launch)
        return claimed.attend(
            source, shape, queries, context, units, scale, output, buffers.claims, launch.programs
        )
    load(range_source(shape, queries.dtype, buffers.stride, launch, pinned)).launch(
        (launch.programs, 1, 1),
        queries,
        context.keys,
        context.values,
        output,
        context.positions,
        units.first,
        units.count,
        units.request,
        buffers.split_start,
        buffers.plans,
        context.page_table,
        buffers.tops,
        buffers.totals,
        buffers.accumulators,
        buffers.arrivals,
        units.units,
        context.page_table.stride(0),
        softmax_factor(scale),
    )
    return output


def range_source(
    shape: AttentionShape,
    dtype: torch.dtype,
    stride: int,
    launch: RangeLaunch,
    pinned: bool = True,
) -> KernelSource:
    """The binary that `shared` launches for units of at most `stride` rows (tokens times group)."""
    if launch.specialised:
        return claimed.claims_source(shape, dtype, stride, launch.stages, launch.together, launch.beside)
    act, wide, narrow, partial = (pointer(kind) for kind in (dtype, torch.int64, torch.int32, torch.float32))
    places = (wide, narrow, narrow, narrow, narrow, narrow, narrow)
    constants = {
        "ROWS": launch.rows,
        "STRIDE": stride,
        "PADDED": int(triton.next_power_of_2(stride)),
        "PINNED": pinned,
        "STAGES": launch.stages,
        "POLLS": launch.polls,
        **shape.constants(),
    }
    arguments = (act, act, act, act, *places, partial, partial, partial, narrow, "i32", "i32", "fp32")
    return named_source(ranges.attention_ranges, arguments, constants, Launch(launch.warps, launch.stages))
