"""Attention: tiles and shared ranges have the reference's bits, and the reference is right."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from attention_cases import Case, Inputs, in_float64, make_inputs

from conftest import INTERPRETED
from samebits.numerics.gpu import attention, attention_fold, attention_prefill, attention_ranges
from samebits.numerics.gpu.attention import RangeLaunch
from samebits.numerics.gpu.attention_core import empty_partial, fold
from samebits.numerics.gpu.attention_operator import FEWER_PROGRAMS, borders
from samebits.numerics.gpu.attention_plan import Units, plan_attention
from samebits.numerics.gpu.attention_prefill import TileLaunch
from samebits.numerics.gpu.attention_ranges import kept_splits, load_partial
from samebits.numerics.gpu.attention_shape import AttentionShape, Context
from samebits.numerics.operators import HeadLayout

# Relative to the largest output: rounding of weights and output to the activation's type.
BOUNDS = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
RATIOS = (1, 5, 8) if INTERPRETED else (1, 2, 3, 4, 5, 6, 7, 8)
LAUNCHES = ((16, 1, 4096), (32, 7, 4096), (64, 40, 4096), (64, 5, 1))
"""(rows of a tile, ranges, partials that have room)"""


def case_of(group: int, head_dim: int = 16, page_tokens: int = 64) -> Case:
    heads = HeadLayout(2 * group, 2, head_dim)
    if INTERPRETED:
        return Case(heads, page_tokens, (0, 255, 511, 250), (3, 1, 2, 9))
    return Case(heads, page_tokens, (0, 255, 256, 300, 1000, 4095, 63, 64), (300, 1, 1, 70, 129, 2, 1, 5))


def context_of(inputs: Inputs) -> Context:
    return Context(inputs.keys, inputs.values, inputs.positions, inputs.page_table)


def shape_of(inputs: Inputs, split_tokens: int = 256) -> AttentionShape:
    return AttentionShape(inputs.case.heads, inputs.case.page_tokens, split_tokens)


def scale_of(inputs: Inputs) -> float:
    return 1.0 / math.sqrt(inputs.case.heads.head_dim)


def by_reference(inputs: Inputs, split_tokens: int = 256) -> torch.Tensor:
    output = torch.full_like(inputs.queries, math.nan)
    shape = shape_of(inputs, split_tokens)
    return attention.reference(
        shape, inputs.queries, context_of(inputs), inputs.row_request, scale_of(inputs), output
    )


def by_kernels(
    inputs: Inputs,
    tile: TileLaunch,
    ranges: RangeLaunch,
    unit_tokens: int = 2,
    capacity: int = 4096,
    pinned: bool = True,
    split_tokens: int = 256,
) -> torch.Tensor:
    """A whole batch: short runs of rows through shared ranges, the others through tiles."""
    shape, context, scale = shape_of(inputs, split_tokens), context_of(inputs), scale_of(inputs)
    ranges = replace(ranges, rows=max(ranges.rows, shape.rows_for(unit_tokens)))
    tokens = tile.tokens(shape.group)
    positions = inputs.positions.cpu().numpy()
    work = plan_attention(inputs.query_start, positions, tokens, unit_tokens, inputs.queries.device)
    output = torch.full_like(inputs.queries, math.nan)
    if work.tiles is not None:
        attention_prefill.tiles(shape, inputs.queries, context, work.tiles, scale, output, tile)
    if work.shared is not None:
        buffers = attention.range_buffers(
            shape, work.shared.units, unit_tokens, ranges.programs, capacity, output.device
        )
        attention.plan_ranges(shape, inputs.positions, inputs.page_table, work.shared, buffers, ranges)
        attention.shared(
            shape, inputs.queries, context, work.shared, scale, output, buffers, ranges, pinned=pinned
        )
    return output


@cache
def four_heads_a_group(device: torch.device, dtype: torch.dtype) -> tuple[Inputs, torch.Tensor]:
    """Inputs that several checks share, and the reference's output."""
    inputs = make_inputs(case_of(4), device, dtype)
    return inputs, by_reference(inputs)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.view(kind), b.view(kind))


@pytest.mark.parametrize("group", RATIOS)
def check_kernels_have_the_reference_bits(
    group: int, device: torch.device, dtypes: list[torch.dtype]
) -> None:
    for dtype in dtypes[-1:] if INTERPRETED or group not in (4, 5) else dtypes:
        inputs = make_inputs(case_of(group), device, dtype, seed=group)
        expected = by_reference(inputs)
        error = (expected.cpu().double() - in_float64(inputs, scale_of(inputs))).abs().max()
        assert error <= BOUNDS[dtype] * inputs.values.abs().max(), (dtype, float(error))
        for rows, programs, capacity in LAUNCHES[-2:] if INTERPRETED else LAUNCHES:
            got = by_kernels(inputs, TileLaunch(rows=rows), RangeLaunch(programs), capacity=capacity)
            assert same_bits(got, expected), (dtype, rows, programs)


def check_another_split_has_other_bits(device: torch.device, dtypes: list[torch.dtype]) -> None:
    inputs, expected = four_heads_a_group(device, dtypes[0])
    assert not same_bits(expected, by_reference(inputs, 128))


def check_free_splits_are_right_and_differ(device: torch.device, dtypes: list[torch.dtype]) -> None:
    inputs, expected = four_heads_a_group(device, dtypes[0])
    got = by_kernels(inputs, TileLaunch(), RangeLaunch(9), pinned=False)
    assert not got.isnan().any()
    assert (got - expected).abs().max() <= BOUNDS[dtypes[0]] * inputs.values.abs().max()


def check_unwritten_slots_do_not_matter(device: torch.device, dtypes: list[torch.dtype]) -> None:
    for dtype in dtypes[:1] if INTERPRETED else dtypes:
        _, expected = four_heads_a_group(device, dtype)
        dirty = make_inputs(case_of(4), device, dtype, poison=math.nan)
        assert same_bits(by_reference(dirty), expected)
        assert same_bits(by_kernels(dirty, TileLaunch(), RangeLaunch(7)), expected)


WIDTHS = [(48, 128), (256, 64)] if INTERPRETED else [(32, 64), (48, 128), (64, 192), (128, 64), (256, 64)]


@pytest.mark.parametrize(("head_dim", "page_tokens"), WIDTHS)
def check_widths_and_pages(
    head_dim: int, page_tokens: int, device: torch.device, dtypes: list[torch.dtype]
) -> None:
    inputs = make_inputs(case_of(2, head_dim, page_tokens), device, dtypes[-1])
    expected = by_reference(inputs)
    error = (expected.cpu().double() - in_float64(inputs, scale_of(inputs))).abs().max()
    assert error <= BOUNDS[dtypes[-1]] * inputs.values.abs().max()
    got = by_kernels(inputs, TileLaunch(), RangeLaunch(5))
    assert same_bits(got, expected)


def planned(lengths: tuple[int, ...], programs: int, device: torch.device, heads: int = 2) -> list[list[int]]:
    """(begin, end, whether pairs are cut) of each range over units of one row; a length of 0 is a unit that is
    skipped."""
    shape = AttentionShape(HeadLayout(2 * heads, heads, 16), 64)
    positions = torch.tensor([max(length, 1) - 1 for length in lengths], device=device)
    places = torch.arange(len(lengths), dtype=torch.int32, device=device)
    units = Units(places, (torch.tensor(lengths, device=device) > 0).int(), places)
    buffers = attention.range_buffers(shape, len(lengths), 1, programs, 4096, device)
    table = torch.zeros(len(lengths), 64, dtype=torch.int32, device=device)
    attention.plan_ranges(shape, positions, table, units, buffers, RangeLaunch(programs))
    return buffers.plans[:, [0, 1, 4]].tolist()


def check_pairs_are_whole_where_that_is_even(device: torch.device) -> None:
    """Twelve pairs of three splits: two for each of six programs, skipped units or not; and nearly even lengths."""
    even = [[6 * number, 6 * number + 6, 0] for number in range(6)]
    assert planned((700,) * 6, 6, device) == even
    assert planned((0, 700, 700, 0, 0, 700, 700, 700, 700, 0), 6, device) == even
    nearly = planned((1100, 1200, 1100, 1300, 1280, 1250), 6, device)
    assert nearly == [[10 * number, 10 * number + 10, 0] for number in range(3)] + [
        [30, 42, 0],
        [42, 52, 0],
        [52, 62, 0],
    ]


def check_pairs_are_cut_where_whole_ones_are_uneven(device: torch.device) -> None:
    for lengths, programs in (((700,) * 6, 5), ((700,) * 5 + (2000,), 6), ((9000,), 8)):
        plan = planned(lengths, programs, device)
        assert all(cut for begin, end, cut in plan if begin < end)
        assert max(end - begin for begin, end, _ in plan) - min(end - begin for begin, end, _ in plan) <= 1
        assert [begin for begin, _, _ in plan[1:]] == [end for _, end, _ in plan[:-1]]


def check_whole_pairs_have_the_reference_bits(device: torch.device, dtypes: list[torch.dtype]) -> None:
    inputs = make_inputs(Case(HeadLayout(4, 2, 16), 64, (130, 90, 150, 170), (1,) * 4), device, dtypes[0])
    expected = by_reference(inputs, 64)
    for programs in (3, 4, 8):
        assert same_bits(by_kernels(inputs, TileLaunch(), RangeLaunch(programs), split_tokens=64), expected)


def kinds_of_pairs(plan: list[list[int]], splits: list[int], heads: int) -> set[str]:
    """What becomes of the pairs of units of so many splits, one unit after another, under a plan: whole, handed on,
    or folded from partials."""
    length = heads * sum(splits)
    starts = [begin for begin, end, _ in plan if begin < end]
    kinds, place = set(), 0
    for pair in (unit for unit in splits for _ in range(heads)):
        cuts = sum(place < start < place + pair for start in starts)
        short = pair * len(plan) <= length
        assert cuts < 2 or not short
        kinds.add("partials" if cuts and not short else "handed on" if cuts else "whole")
        place += pair
    return kinds


def is_noticed(inputs: Inputs, expected: torch.Tensor, programs: int) -> None:
    """Shared ranges, of which something was exchanged, give other bits, and nothing grossly wrong."""
    got = by_kernels(inputs, TileLaunch(), RangeLaunch(programs), split_tokens=64)
    assert not same_bits(got, expected)
    assert (got - expected).abs().max() <= BOUNDS[got.dtype] * inputs.values.abs().max()


@pytest.mark.parametrize("heads", [1, 2, 8])
def check_a_proof_has_every_kind_of_pair(heads: int, device: torch.device) -> None:
    contexts = sorted(borders(256, 64, 1).computed, reverse=True)
    splits = [tokens // 256 + 1 for tokens in contexts]
    found = set()
    for each in FEWER_PROGRAMS:
        plan = planned(tuple(tokens + 1 for tokens in contexts), each * heads, device, heads)
        found |= kinds_of_pairs(plan, splits, heads)
    assert found == {"whole", "handed on", "partials"}


HANDED_ON = (130, 300, 90, 200, 64, 250)
"""40 splits of 64 tokens over two heads, none of a pair more than 5: 5 programs cut pairs, and hand all of them on."""


KEPT = (900, 64, 130, 200)
"""48 splits of which 15 are one pair's: 5 programs have 9 or 10 each, so who ends that pair has to keep some."""


def handing_on(device: torch.device, dtype: torch.dtype, contexts: tuple[int, ...] = HANDED_ON) -> Inputs:
    return make_inputs(Case(HeadLayout(4, 2, 16), 64, contexts, (1,) * len(contexts)), device, dtype)


@pytest.mark.parametrize("capacity", [1, 4096], ids=["without room for partials", "with room"])
def check_what_is_handed_on_has_the_reference_bits(
    capacity: int, device: torch.device, dtypes: list[torch.dtype]
) -> None:
    for dtype in dtypes:
        inputs = handing_on(device, dtype)
        got = by_kernels(inputs, TileLaunch(), RangeLaunch(5), capacity=capacity, split_tokens=64)
        assert same_bits(got, by_reference(inputs, 64)), dtype


def check_what_is_kept_has_the_reference_bits(device: torch.device, dtypes: list[torch.dtype]) -> None:
    for dtype in dtypes:
        inputs = handing_on(device, dtype, KEPT)
        expected = by_reference(inputs, 64)
        for programs in (4, 5, 6, 7):
            got = by_kernels(inputs, TileLaunch(), RangeLaunch(programs), split_tokens=64)
            assert same_bits(got, expected), (dtype, programs)


@triton.jit
def from_the_last_kept(
    tops, totals, accumulators, arrival, number, pair, kept, count, exists, factor,
    D: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """`attention_ranges.take_up` that folds what was kept from the last split to the first."""
    top, total, acc = load_partial(tops, totals, accumulators, pair, exists, D, WIDTH, STRIDE)
    for place in range(count):
        slot = kept + count - 1 - place
        other_top, other_total, other_acc = load_partial(
            tops, totals, accumulators, slot, exists, D, WIDTH, STRIDE
        )
        top, total, acc = fold(top, total, acc, other_top, other_total, other_acc, factor)
    return top, total, acc


@pytest.mark.skipif(not INTERPRETED, reason="a compiled kernel keeps the functions that it was compiled with")
def check_another_order_of_what_is_kept_is_noticed(
    device: torch.device, dtypes: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = handing_on(device, dtypes[0], KEPT)
    expected = by_reference(inputs, 64)
    monkeypatch.setattr(attention_ranges, "take_up", from_the_last_kept)
    is_noticed(inputs, expected, 5)


@triton.jit
def rounded(
    tops, totals, accumulators, slot, exists, D: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr
):
    """`attention_ranges.load_partial` of an accumulator that was rounded on its way."""
    place = slot.to(tl.int64) * STRIDE + tl.arange(0, exists.shape[0])
    top = tl.load(tops + place, mask=exists, other=0.0)
    total = tl.load(totals + place, mask=exists, other=0.0)
    columns = tl.arange(0, WIDTH)[None, :]
    acc = tl.load(accumulators + (place * D)[:, None] + columns, mask=exists[:, None], other=0.0)
    return top, total, acc.to(tl.float16).to(tl.float32)


@triton.jit
def forgotten(
    tops, totals, accumulators, slot, exists, D: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr
):
    """`attention_ranges.load_partial` of nothing."""
    return empty_partial(exists.shape[0], WIDTH)


@triton.jit
def one_more(pair, start, end, place, taken, program, programs, length):
    """`attention_ranges.kept_splits` with one split more, where there is one: the same bits."""
    return tl.minimum(kept_splits(pair, start, end, place, taken, program, programs, length) + 1, taken)


@pytest.mark.skipif(not INTERPRETED, reason="a compiled kernel keeps the functions that it was compiled with")
@pytest.mark.parametrize("other", [rounded, forgotten], ids=["rounded", "forgotten"])
def check_another_beginning_is_noticed(
    other: Any, device: torch.device, dtypes: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = handing_on(device, dtypes[0])
    expected = by_reference(inputs, 64)
    monkeypatch.setattr(attention_ranges, "load_partial", other)
    got = by_kernels(inputs, TileLaunch(), RangeLaunch(5), split_tokens=64)
    assert not same_bits(got, expected)


@pytest.mark.skipif(not INTERPRETED, reason="a compiled kernel keeps the functions that it was compiled with")
def check_keeping_more_changes_no_bit(
    device: torch.device, dtypes: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = handing_on(device, dtypes[0])
    monkeypatch.setattr(attention_ranges, "kept_splits", one_more)
    got = by_kernels(inputs, TileLaunch(), RangeLaunch(5), split_tokens=64)
    assert same_bits(got, by_reference(inputs, 64))


def many_partials(device: torch.device, dtype: torch.dtype, tokens: int = 2200) -> Inputs:
    """One row whose 35 splits of 64 tokens are more than one program folds by itself, and more than a group."""
    return make_inputs(Case(HeadLayout(4, 2, 16), 64, (tokens,), (1,)), device, dtype)


@pytest.mark.parametrize("programs", [9, 40])
def check_many_partials_are_folded_in_order(
    programs: int, device: torch.device, dtypes: list[torch.dtype]
) -> None:
    inputs = many_partials(device, dtypes[0])
    ranges = RangeLaunch(programs)
    assert same_bits(by_kernels(inputs, TileLaunch(), ranges, split_tokens=64), by_reference(inputs, 64))


@triton.jit
def from_the_last(begin, number, partials, programs, length, PINNED: tl.constexpr):
    """`attention_fold.partial_place` with the last split's partial first."""
    return tl.maximum(partials - 1 - number, 0)


@triton.jit
def swapped_at_the_border(begin, number, partials, programs, length, PINNED: tl.constexpr):
    """`attention_fold.partial_place` with the last partial of the first group after the first of the second."""
    swapped = tl.where(number == 31, 32, tl.where(number == 32, 31, number))
    return tl.minimum(swapped, partials - 1)


@pytest.mark.skipif(not INTERPRETED, reason="a compiled kernel keeps the functions that it was compiled with")
@pytest.mark.parametrize(
    ("other", "tokens"),
    [(from_the_last, 400), (from_the_last, 2200), (swapped_at_the_border, 2200)],
    ids=["few from the last", "many from the last", "swapped"],
)
def check_another_order_of_partials_is_noticed(
    other: Any, tokens: int, device: torch.device, dtypes: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = many_partials(device, dtypes[0], tokens)
    expected = by_reference(inputs, 64)
    monkeypatch.setattr(attention_fold, "partial_place", other)
    is_noticed(inputs, expected, 40)
