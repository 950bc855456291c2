"""Units of rows: every row of a batch in exactly one, longest contexts first, each part at a multiple of 16 bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from samebits.errors import NumericsError
from samebits.numerics.gpu import attention, attention_work
from samebits.numerics.gpu.attention import default_launches, default_ranges, ranges_pay
from samebits.numerics.gpu.attention_plan import Units, plan_attention, shared_contexts
from samebits.numerics.gpu.attention_prefill import default_tile
from samebits.numerics.gpu.attention_shape import AttentionShape, softmax_factor
from samebits.numerics.gpu.attention_work import AttentionScheduler
from samebits.numerics.operators import HeadLayout

LENGTHS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 70)), min_size=1, max_size=9)


def rows_of(units: Units | None) -> list[tuple[int, int]]:
    """(row, request) of every row that some unit holds."""
    if units is None:
        return []
    table = zip(units.first.tolist(), units.count.tolist(), units.request.tolist(), strict=True)
    return [(row, request) for first, count, request in table for row in range(first, first + count)]


@given(LENGTHS, st.integers(1, 32), st.integers(1, 4))
def test_every_row_has_one_unit(lengths: list[tuple[int, int]], of_tile: int, of_unit: int) -> None:
    query_start = np.concatenate([[0], np.cumsum([count for _, count in lengths])]).astype(np.int32)
    positions = np.array([p for before, count in lengths for p in range(before, before + count)], np.int64)
    work = plan_attention(query_start, positions, of_tile, of_unit, torch.device("cpu"))
    found = sorted(rows_of(work.tiles) + rows_of(work.shared))
    owners = np.repeat(np.arange(len(lengths)), query_start[1:] - query_start[:-1])
    assert found == list(enumerate(owners.tolist()))
    for units, most in ((work.tiles, of_tile), (work.shared, of_unit)):
        if units is None:
            continue
        assert int(units.count.max()) <= most
        for part in (units.first, units.count, units.request):
            assert part.is_contiguous() and part.data_ptr() % 16 == 0
        ends = [
            positions[first + count - 1]
            for first, count in zip(units.first.tolist(), units.count.tolist(), strict=True)
            if count
        ]
        assert ends == sorted(ends, reverse=True)


@given(LENGTHS, st.integers(1, 32), st.data())
def test_wanted_tiles_are_those_that_hold_a_wanted_row(
    lengths: list[tuple[int, int]], of_tile: int, data: st.DataObject
) -> None:
    query_start = np.concatenate([[0], np.cumsum([count for _, count in lengths])]).astype(np.int32)
    positions = np.array([p for before, count in lengths for p in range(before, before + count)], np.int64)
    some = st.lists(st.integers(0, max(len(positions) - 1, 0)), max_size=12 if len(positions) else 0)
    wanted = np.array(data.draw(some), dtype=np.int64)
    cpu = torch.device("cpu")
    work = plan_attention(query_start, positions, of_tile, 1, cpu, wanted)
    expected = [tile for tile in runs_of(work.tiles) if set(tile) & set(wanted.tolist())]
    assert runs_of(work.wanted_tiles) == expected, "in the same order, the longest contexts first"
    assert runs_of(plan_attention(query_start, positions, of_tile, 1, cpu).tiles) == runs_of(work.tiles)


def runs_of(units: Units | None) -> list[range]:
    """The rows of each unit that is not skipped."""
    if units is None:
        return []
    pairs = zip(units.first.tolist(), units.count.tolist(), strict=True)
    return [range(first, first + count) for first, count in pairs if count]


@pytest.mark.parametrize(
    ("heads", "pages", "split", "words"),
    [
        (HeadLayout(7, 2, 64), 64, 256, "no multiple of 2 kv heads"),
        (HeadLayout(8, 2, 40), 64, 256, "head_dim"),
        (HeadLayout(8, 2, 512), 64, 256, "head_dim"),
        (HeadLayout(8, 2, 64), 96, 256, "page_tokens must be a multiple"),
        (HeadLayout(8, 2, 64), 64, 100, "split_tokens must be a multiple"),
    ],
)
def test_a_shape_that_no_kernel_has_is_refused(heads: HeadLayout, pages: int, split: int, words: str) -> None:
    with pytest.raises(NumericsError, match=words):
        AttentionShape(heads, pages, split)


def test_the_scale_is_positive() -> None:
    with pytest.raises(NumericsError, match="must be positive"):
        softmax_factor(-1.0)


@pytest.mark.parametrize("group", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_launches_hold_whole_tokens(group: int, dtype: torch.dtype) -> None:
    shape = AttentionShape(HeadLayout(2 * group, 2, 128), 64)
    assert default_tile(shape, dtype).tokens(group) >= 1
    for units in (1, 256):
        assert default_ranges(shape, dtype, 3, units, 8).rows >= 3 * group


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8, 32])
def test_pairs_choose_how_many_programs_share_them(kv_heads: int) -> None:
    """Two a multiprocessor for few units, and where folds are handed on for all numbers of pairs from 176 to 439 of 132
    multiprocessors."""
    shape = AttentionShape(HeadLayout(4 * kv_heads, kv_heads, 128), 64)
    for units in range(1, 400):
        launches = [default_ranges(shape, torch.bfloat16, 1, units, 132, pinned) for pinned in (True, False)]
        pairs = units * kv_heads
        pinned = units <= 4 or 176 <= pairs < 440
        free = units <= 4
        assert [launch.programs == 264 for launch in launches] == [pinned, free], units
        assert {launch.programs for launch in launches} <= {264, 528}


@pytest.mark.parametrize("kv_heads", [1, 2, 8, 32, 40, 128])
@pytest.mark.parametrize("processors", [1, 8, 72, 108, 132, 160])
@pytest.mark.parametrize("hopper", [False, True])
def test_every_launch_that_may_serve_is_named_to_the_prover(
    kv_heads: int, processors: int, hopper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "specialised_ranges", lambda *rest: hopper)
    shape = AttentionShape(HeadLayout(kv_heads, kv_heads, 128), 64)
    chosen = {
        default_ranges(shape, torch.bfloat16, 1, units, processors, ranged=ranged)
        for units in range(1, 400)
        for ranged in (False, True)
    }
    assert chosen == set(default_launches(shape, torch.bfloat16, 1, processors))
    assert any(launch.specialised for launch in chosen) == hopper


def test_ranges_serve_many_rows_of_some_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Hopper, where claims serve all others. Who serves chooses no bit."""
    shape = AttentionShape(HeadLayout(32, 8, 128), 64)
    scheduler = AttentionScheduler(torch.device("cpu"), 256)
    scheduler._shape = shape
    short = np.full(64, 383)
    assert not scheduler.second_way(256) and not scheduler.second_way(64, short)
    monkeypatch.setattr(attention, "specialised_ranges", lambda *rest: True)
    monkeypatch.setattr(attention_work, "specialised_ranges", lambda *rest: True)
    for units in (1, 24, 25, 256):
        for ranged in (False, True):
            claims = default_ranges(shape, torch.bfloat16, 1, units, 132, ranged=ranged).specialised
            assert claims == (not ranged or units <= 24)
        assert scheduler.second_way(units) == scheduler.second_way(units, short) == (units > 24)
    free = AttentionScheduler(torch.device("cpu"), 256, pinned=False)
    free._shape = shape
    assert not free.second_way(256)


def test_contexts_for_which_ranges_pay() -> None:
    shape = AttentionShape(HeadLayout(32, 8, 128), 64)

    def with_one(tokens: int, others: int) -> np.ndarray:
        return np.array([tokens, *[others] * 63])

    for contexts, many, fewer in (
        (np.full(64, 383), True, True),
        (np.full(64, 384), False, False),
        (with_one(16_384, 1024), True, False),
        (with_one(16_384, 4096), False, False),
        # On both sides of the length at which one pair is a multiprocessor's share: 8 heads of 135 splits in all.
        (with_one(9 * 256, 512), True, False),
        (with_one(8 * 256, 512), False, False),
        (np.zeros(0, dtype=np.int64), False, False),
    ):
        assert ranges_pay(shape, contexts, 64, 132) == many
        assert ranges_pay(shape, contexts, 48, 132) == fewer
        assert not ranges_pay(shape, contexts, 24, 132)
    # Of two key-value heads each program has one whole pair: nothing is cut, though one is longer than the average.
    narrow = AttentionShape(HeadLayout(8, 2, 128), 64)
    assert not ranges_pay(narrow, np.full(64, 1024), 64, 132)
    assert ranges_pay(narrow, np.full(50, 1024), 50, 132)


def test_shared_contexts_are_those_of_few_rows() -> None:
    starts, positions = np.array([0, 3, 4, 4, 5]), np.array([7, 8, 9, 100, 299])
    assert shared_contexts(starts, positions, 1).tolist() == [101, 300]
    assert shared_contexts(starts[:2], positions[:3], 1).tolist() == []


def test_buffers_serve_the_launches_of_every_bucket() -> None:
    """A captured step keeps the addresses that it was captured with, whatever is captured after it."""
    shape = AttentionShape(HeadLayout(8, 8, 64), 64)
    scheduler = AttentionScheduler(torch.device("cpu"), 256)
    scheduler._processors = 132
    scheduler.reserve(32)
    launches = [default_ranges(shape, torch.bfloat16, 1, units, 132) for units in (32, 16, 8, 4, 1)]
    assert launches[0].programs < launches[1].programs
    found = [scheduler._buffers_for(shape, 32, launch.programs) for launch in launches]
    assert all(one is found[0] for one in found)
