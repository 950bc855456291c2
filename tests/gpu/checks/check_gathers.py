"""Gathers over ranks: rows and columns where they belong, by an independent evaluation, without meeting."""

from __future__ import annotations

import pytest
import torch
from check_all_reduce import BLOCK, LAUNCH, same, table

from samebits.numerics.adversarial import wide_rows
from samebits.numerics.gpu import gathers
from samebits.numerics.gpu.configuration import start


@pytest.mark.parametrize(("held", "columns"), [(1024, 2048), (1024, 1352), (512, 512), (1024, 2040)])
@pytest.mark.parametrize("rows", [1, 5])
def check_logits_stand_side_by_side(held: int, columns: int, rows: int, device: torch.device) -> None:
    parts = [wide_rows(rank, rows, held).to(device) for rank in range(2)]
    spare = torch.zeros(8, dtype=torch.int64, device=device)
    expected = torch.cat(parts, dim=1)[:, :columns]
    for rank in range(2):
        y = torch.full((rows, columns), float("nan"), device=device)
        start(
            gathers.gather_columns, (3,), table(parts), spare, spare, y, rows, held // 8, columns // 8, rank,
            launch=LAUNCH, WORLD=2, BLOCK=BLOCK, MEET=0,
        )  # fmt: skip
        assert same(y, expected)


@pytest.mark.parametrize("size", [2, 4])
def check_rows_go_to_who_adds_them(size: int, device: torch.device) -> None:
    """Every owner has its rows of all ranks, one rank behind the other."""
    rows, width = 3 * size, 400
    parts = [wide_rows(30 + rank, rows, width).to(device) for rank in range(size)]
    held = [torch.full((size, 3, width), float("nan"), device=device) for _ in range(size)]
    for rank, part in enumerate(parts):
        start(
            gathers.push_rows, (2,), part, table(held), rows, 3, rank,
            launch=LAUNCH, WIDTH=width, BLOCK=BLOCK,
        )  # fmt: skip
    for owner, found in enumerate(held):
        assert same(found, torch.stack([part[3 * owner : 3 * owner + 3] for part in parts]))


@pytest.mark.parametrize("size", [2, 4])
def check_rows_come_from_their_owners(size: int, device: torch.device, dtypes: list[torch.dtype]) -> None:
    held, width = 10, 400
    ids = torch.tensor([0, 9, 10, 10 * size - 1, 3, 17], device=device)
    spare = torch.zeros(8, dtype=torch.int64, device=device)
    for dtype in dtypes:
        parts = [wide_rows(20 + rank, len(ids), width).to(device, dtype) for rank in range(size)]
        expected = torch.stack([parts[int(token) // held][row] for row, token in enumerate(ids)])
        y = torch.zeros_like(expected)
        start(
            gathers.gather_rows, (2,), table(parts), spare, spare, ids, y, len(ids), held, 1,
            launch=LAUNCH, WIDTH=width, WORLD=size, BLOCK=BLOCK, MEET=0,
        )  # fmt: skip
        assert same(y, expected)
        assert not same(y, parts[0])
