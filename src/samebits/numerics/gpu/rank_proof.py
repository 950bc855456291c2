"""The proof of the sums over ranks, at every start: each rank knows what all ranks add, and so what must come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.gpu.gemm_problem import hashed_words
from samebits.numerics.gpu.norm import add_rms_norm
from samebits.numerics.gpu.rank_group import RankGroup

ROWS = (1, 33, 304)
"""Messages of one program and of many, on either side of the sizes at which another way serves."""
LARGE = 1 << 62
"""Bytes of a message for which any rank would push."""
Pair = tuple[Tensor, Tensor]
"""What was found, and what must be."""
SEED = 77
EPS = 1e-6


def adversarial_part(
    rank: int, size: int, rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What a rank adds: small values, and in most places two of the ranks hold large ones that cancel, so that what is
    left of the others tells the order."""
    count = rows * width
    common = hashed_words(SEED, 0, count, device)
    own = hashed_words(SEED + 1 + rank, 0, count, device)
    small = ((own & 0xFFFF) - 32768).to(torch.float32) / 4096
    # Of powers of two: no product is rounded.
    large = torch.ldexp(((common & 0xFF) + 256).to(torch.float32), (common >> 8) & 31)
    first, second = (common >> 16) % size, (common >> 32) % size
    signed = torch.where(first == rank, large, torch.where(second == rank, -large, small))
    return torch.where(first == second, small, signed).view(rows, width).to(dtype)


def folded(parts: list[Tensor], tree: bool, act: torch.dtype) -> Tensor:
    """The clause, by sums of two tensors at a time, which leave no order."""
    wide = [part.to(torch.float32) for part in parts]
    while tree and len(wide) > 1:
        wide = [left + right for left, right in zip(wide[::2], wide[1::2], strict=True)]
    total = wide[0]
    for part in wide[1:]:
        total = total + part
    return total.to(act)


@dataclass(frozen=True)
class KnownSum:
    """What a rank adds, and what must come out."""

    group: RankGroup
    own: Tensor
    expected: Tensor
    residual: Tensor
    weight: Tensor

    def part(self) -> Tensor:
        return self.group.part(self.own.shape, self.own.dtype).copy_(self.own)

    def added(self, way: str) -> list[Pair]:
        return [(self.group.all_reduce(self.part(), self.expected.dtype, way=way), self.expected)]

    def normed(self) -> list[Pair]:
        """With the norm that may be in the same kernel."""
        expected = add_rms_norm(self.expected, self.residual, self.weight, EPS)
        found = self.group.all_reduce_add_norm(self.part(), self.residual, self.weight, EPS)
        return list(zip(found, expected, strict=True))

    def shared(self, pushed: bool) -> list[Pair]:
        """With norms of shared rows: a sum whose residual stays with the owners of its rows, and one that tells it."""
        rows = self.own.shape[0] // self.group.size
        own = slice(self.group.rank * rows, (self.group.rank + 1) * rows)
        first = add_rms_norm(self.expected, self.residual, self.weight, EPS)
        second = add_rms_norm(self.expected, first[1], self.weight, EPS)
        pairs: list[Pair] = []
        residual = self.residual
        for whole, (normed, total) in ((False, first), (True, second)):
            part = self.group.push(self.own) if pushed else self.part()
            found = self.group.all_reduce_add_norm(
                part, residual, self.weight, EPS, pushed, whole=whole, shared=True
            )
            kept = slice(None) if whole else own
            pairs += [(found[0].clone(), normed), (found[1][kept].clone(), total[kept])]
            # Rows of others must not be read.
            residual = torch.full_like(residual, torch.nan)
            residual[own] = found[1][own]
        return pairs

    def pushed(self) -> list[Pair]:
        """Of parts that a product has written to the ranks that add them."""
        part = self.group.push(self.own)
        return [(self.group.all_reduce(part, self.expected.dtype, pushed=True), self.expected)]


def prove_sums(
    group: RankGroup, width: int, part_type: torch.dtype, act: torch.dtype, tree: bool, device: torch.device
) -> None:
    """Raises `NumericsError` where a sum over ranks is not that of the clause bit for bit. All ranks do it together."""
    for rows in ROWS:
        parts = [
            adversarial_part(rank, group.size, rows, width, part_type, device) for rank in range(group.size)
        ]
        # Any finite values will do for what stands beside the sum.
        known = KnownSum(
            group, parts[group.rank], folded(parts, tree, act), parts[0].to(act), parts[0][0].to(act)
        )
        ways: list[Callable[[], list[Pair]]] = [partial(known.added, way) for way in group.ways]
        ways.append(known.normed)
        if tree and group.pushes(rows, LARGE):
            ways.append(known.pushed)
            ways += [partial(known.shared, pushed) for pushed in (True, False)]
        for way in ways:
            pairs = way() + way()  # buffers take turns
            if not all(torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in pairs):
                raise NumericsError(
                    f"a sum over {group.size} ranks of [{rows}, {width}] {part_type} left its clause on rank "
                    f"{group.rank}: these GPUs do not reach each other's memory soundly, or a kernel is wrong"
                )
