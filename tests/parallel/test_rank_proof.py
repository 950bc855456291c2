"""The proof of sums over ranks at a start: it passes what keeps the clause, and sees what does not."""

from __future__ import annotations

import pytest
import torch
from rank_threads import on_ranks
from torch import Tensor

pytest.importorskip("triton")

from samebits.errors import NumericsError
from samebits.numerics.gpu import rank_proof
from samebits.numerics.gpu.rank_proof import adversarial_part, folded, prove_sums

CPU = torch.device("cpu")
WIDTH = 64


class FoldingGroup:
    """A group that adds gathered parts; `fold` may be wrong, and so may be that of what was written to the owners.
    With `stale`, norms of shared rows read the residual of others' rows, which is void."""

    def __init__(self, group, fold, pushed_fold, stale: bool = False) -> None:
        self._group, self._fold, self._pushed_fold, self._stale = group, fold, pushed_fold, stale
        self.rank, self.size = group.rank, group.size

    def part(self, shape, dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def pushes(self, rows: int, size: int) -> bool:
        return rows % self.size == 0

    def push(self, values: Tensor) -> Tensor:
        return values

    ways = ("",)

    def all_reduce(self, part: Tensor, act: torch.dtype, pushed: bool = False, way: str = "") -> Tensor:
        fold = self._pushed_fold if pushed else self._fold
        return fold(list(self._group.all_gather(part)), act)

    def all_reduce_add_norm(
        self,
        part: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        pushed: bool = False,
        whole: bool = True,
        shared: bool | None = None,
    ):
        summed = self.all_reduce(part, residual.dtype, pushed)
        if not shared:
            return plain_add_norm(summed, residual, weight, eps)
        rows = residual.shape[0] // self.size
        own = slice(self.rank * rows, (self.rank + 1) * rows)
        if not self._stale:
            residual = self._group.all_gather(residual[own]).flatten(0, 1)
        normed, total = plain_add_norm(summed, residual, weight, eps)
        kept = torch.full_like(total, torch.nan)
        kept[own] = total[own]
        return normed, total if whole else kept


def plain_add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Stands for the norm kernel, which needs a GPU."""
    return x * weight, x + residual


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_proof, "add_rms_norm", plain_add_norm)


def prove(size: int, tree: bool, fold, pushed_fold=None, stale: bool = False) -> None:
    part = torch.float32 if tree else torch.bfloat16
    on_ranks(
        size,
        lambda group: prove_sums(
            FoldingGroup(group, fold, pushed_fold or fold, stale), WIDTH, part, torch.bfloat16, tree, CPU
        ),
    )


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_clause_passes(size: int, tree: bool) -> None:
    prove(size, tree, lambda parts, act: folded(parts, tree, act))


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("size", [4, 8])
def test_another_order_is_seen(size: int, tree: bool) -> None:
    with pytest.raises(NumericsError, match="left its clause"):
        prove(size, tree, lambda parts, act: folded(parts, not tree, act))
    with pytest.raises(NumericsError, match="left its clause"):
        prove(size, tree, lambda parts, act: folded([parts[2], *parts[:2], *parts[3:]], tree, act))


def test_what_was_written_to_the_owners_is_proven_too() -> None:
    def clause(parts: list[Tensor], act: torch.dtype) -> Tensor:
        return folded(parts, True, act)

    def swapped(parts: list[Tensor], act: torch.dtype) -> Tensor:
        return folded([parts[1], parts[0], parts[3], parts[2]][::2] + parts[1::2], True, act)

    prove(4, True, clause, clause)
    with pytest.raises(NumericsError, match="left its clause"):
        prove(4, True, clause, swapped)


def test_rows_of_the_residual_that_others_keep_are_seen() -> None:
    with pytest.raises(NumericsError, match="left its clause"):
        prove(2, True, lambda parts, act: folded(parts, True, act), stale=True)


def test_a_stale_part_and_a_rounding_too_many_are_seen() -> None:
    stale = adversarial_part(1, 2, 1, WIDTH, torch.bfloat16, CPU) * 0

    def late(parts: list[Tensor], act: torch.dtype) -> Tensor:
        return folded([parts[0], stale.expand(parts[1].shape)], False, act)

    def rounded(parts: list[Tensor], act: torch.dtype) -> Tensor:
        return folded([part.to(act) for part in parts], True, act)

    with pytest.raises(NumericsError, match="left its clause"):
        prove(2, False, late)
    with pytest.raises(NumericsError, match="left its clause"):
        prove(2, True, rounded)
