"""Shared ranges touch nothing outside of their tensors: every address of every load, store and atomic is looked up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from conftest import INTERPRETED
from samebits.numerics.gpu import attention, attention_claimed
from samebits.numerics.gpu.attention import RangeLaunch
from samebits.numerics.gpu.attention_plan import decode_units
from samebits.numerics.gpu.attention_shape import AttentionShape, Context
from samebits.numerics.operators import HeadLayout

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the interpreter's addresses are watched")
HEADS = HeadLayout(4, 2, 16)
SHAPE = AttentionShape(HEADS, 64)
CONTEXTS = (
    (1,), (64,), (65,), (256,), (257,), (512,), (1024,), (1340,), (4096,), (300, 1, 1025), (700,) * 5,
)  # fmt: skip
PROGRAMS = (1, 3, 16, 33)


class Bounds:
    """The tensors that may be touched, and how often something else was."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.outside = 0
        self.seen = 0

    def watch(self, *tensors: torch.Tensor) -> None:
        self.tensors.extend(tensors)

    def look(self, addresses: np.ndarray, mask: np.ndarray | None) -> None:
        wanted = np.ravel(addresses)
        if mask is not None:
            wanted = wanted[np.ravel(np.broadcast_to(mask, np.shape(addresses)))]
        spans = sorted((one.data_ptr(), one.data_ptr() + one.nbytes) for one in self.tensors)
        begins, ends = np.array([(0, 0), *spans], np.uint64).T
        places = np.searchsorted(begins, wanted.astype(np.uint64), side="right") - 1
        self.seen += len(wanted)
        self.outside += int((wanted.astype(np.uint64) >= ends[places]).sum())


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bounds]:
    from triton.runtime.interpreter import InterpreterBuilder

    found = Bounds()
    names = {"create_masked_load": (0, 1), "create_masked_store": (0, 2), "create_atomic_rmw": (1, 3)}
    for name, (pointer, mask) in names.items():
        plain = getattr(InterpreterBuilder, name)

        def watched(
            self: Any, *given: Any, plain: Any = plain, pointer: int = pointer, mask: int = mask
        ) -> Any:
            found.look(given[pointer].data, given[mask].data if given[mask] is not None else None)
            return plain(self, *given)

        monkeypatch.setattr(InterpreterBuilder, name, watched)
    yield found


def attend(bounds: Bounds, contexts: tuple[int, ...], programs: int, pages_short: int = 0) -> int:
    """Plan and run one decode step; the number of accesses that were outside."""
    rows = len(contexts)
    make = torch.Generator().manual_seed(programs)
    counts = [-(-tokens // 64) for tokens in contexts]
    stored = torch.randn(2, sum(counts), HEADS.kv_heads, 64, HEADS.head_dim, generator=make)
    keys, values = stored[0].clone(), stored[1].clone()
    table = torch.full((rows, max(counts)), -1, dtype=torch.int32)
    order = torch.randperm(sum(counts), generator=make).int()
    for row, pages in enumerate(order.split(counts)):
        table[row, : len(pages)] = pages + pages_short
    positions = torch.tensor(contexts) - 1
    units = decode_units(rows, rows, positions.device)
    launch = RangeLaunch(programs)
    buffers = attention.range_buffers(SHAPE, rows, 1, programs, 64 * HEADS.kv_heads * rows, positions.device)
    queries = torch.randn(rows, HEADS.query_heads, HEADS.head_dim, generator=make)
    output = torch.empty_like(queries)
    bounds.watch(keys, values, table, positions, units.first, units.count, units.request, queries, output)
    bounds.watch(
        buffers.split_start,
        buffers.plans,
        buffers.tops,
        buffers.totals,
        buffers.accumulators,
        buffers.arrivals,
    )
    attention.plan_ranges(SHAPE, positions, table, units, buffers, launch)
    attention.shared(
        SHAPE, queries, Context(keys, values, positions, table), units, 0.25, output, buffers, launch
    )
    assert not buffers.arrivals.any()
    return bounds.outside


@pytest.mark.parametrize("contexts", CONTEXTS, ids=str)
def check_nothing_outside_is_touched(contexts: tuple[int, ...], bounds: Bounds) -> None:
    for programs in PROGRAMS:
        assert attend(bounds, contexts, programs) == 0
    assert bounds.seen > 1000


@pytest.mark.parametrize("contexts", CONTEXTS, ids=str)
def check_a_plan_of_claims_touches_nothing_outside(contexts: tuple[int, ...], bounds: Bounds) -> None:
    rows = len(contexts)
    table = torch.arange(rows * 64, dtype=torch.int32).view(rows, 64)
    positions = torch.tensor(contexts) - 1
    units = decode_units(rows, rows, positions.device)
    for capacity in (1, 64 * HEADS.kv_heads * rows):
        buffers = attention_claimed.claim_buffers(SHAPE, rows, 1, 33, capacity, positions.device)
        bounds.watch(positions, table, units.first, units.count, units.request)
        bounds.watch(buffers.split_start, buffers.table, buffers.state)
        for programs in PROGRAMS:
            attention_claimed.plan(SHAPE, positions, table, units, buffers, programs)
    assert bounds.seen > 50 and not bounds.outside


def check_a_wrong_page_is_noticed(bounds: Bounds) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # What lies outside is not there to be read.
        from triton.runtime.interpreter import InterpreterBuilder

        plain = InterpreterBuilder.create_masked_load

        def harmless(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            before = bounds.outside
            bounds.look(pointers.data, mask.data)
            if bounds.outside > before:
                raise IndexError("outside")
            return plain(self, pointers, mask, *rest)

        patch.setattr(InterpreterBuilder, "create_masked_load", harmless)
        with pytest.raises(Exception, match="outside"):
            attend(bounds, (300,), 3, pages_short=1 << 16)
