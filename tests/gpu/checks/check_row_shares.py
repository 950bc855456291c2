"""Sums whose rows are normed by the ranks that add them: the bits of a sum on every rank and the norm behind it.

All ranks' buffers lie in this process, and the kernels run for one rank after another without meeting.
"""

from __future__ import annotations

import pytest
import torch
from check_all_reduce import EPS, LAUNCH, joined, parts_of, same, table
from torch import Tensor

from samebits.numerics.adversarial import wide_rows
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu import all_reduce, row_shares
from samebits.numerics.gpu.configuration import start
from samebits.numerics.gpu.norm import add_rms_norm

ROWS, WIDTH = 24, 1200
"""More rows than the programs take at once, and more columns than lanes."""
WAYS = {"read": all_reduce.READ, "pushed": all_reduce.PUSHED}


def own_rows(rank: int, size: int) -> slice:
    return slice(rank * ROWS // size, (rank + 1) * ROWS // size)


def shared(
    parts: list[Tensor], residuals: list[Tensor], weight: Tensor, tree: bool, way: str, normed: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Results and totals of all ranks."""
    size, device, act = len(parts), parts[0].device, weight.dtype
    spare = torch.zeros(8, dtype=torch.int64, device=device)
    rooms = [torch.cat([part[own_rows(rank, size)] for part in parts]) for rank in range(size)]
    results = [torch.full((ROWS, WIDTH), torch.nan, dtype=act, device=device) for _ in parts]
    totals = [torch.full_like(result, torch.nan) for result in results]
    inputs = table(parts if way == "read" else rooms)
    for rank in range(size):
        start(
            row_shares.add_norm_shares, (2,), inputs, table(results), spare, spare, parts[rank], residuals[rank],
            weight, results[rank], totals[rank], ROWS // size, rank, EPS,
            launch=LAUNCH, WIDTH=WIDTH, LANES=CONTRACT.device_reduction_lanes, FIRST=rank, WORLD=size,
            TREE=tree, WAY=WAYS[way].value, NORMED=normed, MEET=0,
        )  # fmt: skip
    return results, totals


def inputs_of(
    size: int, tree: bool, act: torch.dtype, device: torch.device
) -> tuple[list[Tensor], list[Tensor], Tensor, tuple[Tensor, Tensor]]:
    """Parts, residuals of which a rank has its own rows alone, the weight, and what must come out."""
    parts = parts_of(size, ROWS, WIDTH, torch.float32 if tree else act, device)
    residual = wide_rows(7, ROWS, WIDTH, 2).to(device, act)
    weight = wide_rows(8, 1, WIDTH, 1)[0].to(device, act)
    residuals = [torch.full_like(residual, torch.nan) for _ in parts]
    for rank, own in enumerate(residuals):
        own[own_rows(rank, size)] = residual[own_rows(rank, size)]
    return parts, residuals, weight, add_rms_norm(joined(parts, tree, act), residual, weight, EPS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "tree"), [(2, True), (2, False), (4, False), (8, True)])
def check_rows_normed_by_their_owners_are_the_pair(
    size: int, tree: bool, way: str, device: torch.device, dtypes: list[torch.dtype]
) -> None:
    for act in dtypes:
        parts, residuals, weight, expected = inputs_of(size, tree, act, device)
        results, totals = shared(parts, residuals, weight, tree, way, normed=True)
        for rank, (y, total) in enumerate(zip(results, totals, strict=True)):
            own = own_rows(rank, size)
            assert same(y, expected[0]), (act, rank)
            assert same(total[own], expected[1][own]), (act, rank)
            others = torch.cat([total[: own.start], total[own.stop :]])
            assert bool(others.isnan().all()), "rows of others are not this rank's to write"


def check_sums_are_told_to_all_where_all_read_them(device: torch.device) -> None:
    for tree, way in ((True, "pushed"), (True, "read"), (False, "read")):
        parts, residuals, weight, expected = inputs_of(4, tree, torch.float16, device)
        results, totals = shared(parts, residuals, weight, tree, way, normed=False)
        for y, total in zip(results, totals, strict=True):
            assert same(y, expected[1])
            assert bool(total.isnan().all())


def check_another_order_of_ranks_shows(device: torch.device) -> None:
    """The inverse: the same kernel over parts in another order leaves the clause."""
    parts, residuals, weight, expected = inputs_of(4, True, torch.float16, device)
    results, _ = shared([parts[2], *parts[:2], parts[3]], residuals, weight, True, "read", normed=True)
    assert not same(results[0], expected[0])
