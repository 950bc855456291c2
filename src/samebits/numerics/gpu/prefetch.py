"""Asking the next product's weights into the second-level cache while a short kernel leaves memory idle.

A hint of the launch: it moves no value, so it cannot change a bit. Weights never change while kernels run, so it may
stand before a dependent kernel's wait.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

LINE_BYTES = 128
LEAST_BYTES = 512
"""Of a row, where the rows are so many that a part of each would be less: then fewer rows are asked for."""


@dataclass(frozen=True)
class Prefetch:
    """The first `width` bytes of each of the first `rows` rows of a matrix [.., columns]. Nothing for 0 rows."""

    weight: Tensor
    width: int
    rows: int

    @property
    def arguments(self) -> tuple[Tensor, int, int, int]:
        """As kernels take them: pointer, elements from row to row, bytes, rows."""
        return self.weight, self.weight.shape[1], self.width, self.rows


def prefetch_of(weight: Tensor, limit: int) -> Prefetch:
    """About `limit` bytes of a weight [columns, depth], the parts of its rows that a product reads first."""
    rows, depth = weight.shape
    whole = depth * weight.element_size()
    if whole % 16 or limit <= 0:
        return Prefetch(weight, 0, 0)
    width = min(whole, max(LEAST_BYTES, limit // rows // LINE_BYTES * LINE_BYTES))
    return Prefetch(weight, width, min(rows, limit // width))


@triton.jit
def prefetch_share(weight, stride, width, rows, program, programs, THREADS: tl.constexpr):
    """Ask for one program's share of the rows, one bulk request a thread; requests do not wait."""
    thread = tl.arange(0, THREADS)
    for first in range(program, rows, programs * THREADS):
        row = first + thread * programs
        tl.inline_asm_elementwise(
            "{ .reg .pred inside; setp.lt.s32 inside, $2, $3;"
            " @inside cp.async.bulk.prefetch.L2.global [$1], $4; mov.u32 $0, 0; }",
            "=r,l,r,r,r",
            [weight + row.to(tl.int64) * stride, row, rows, width],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@dataclass(frozen=True)
class PrefetchLimits:
    """Bytes that are asked for while a kernel runs, and the rows of a step up to which that pays."""

    attention: int = 0
    norm: int = 0
    rows: int = 0


class ReadingOrder:
    """Which weight is read after which, learned as products run: every step reads its weights in the same order."""

    def __init__(self, limits: PrefetchLimits) -> None:
        self.limits = limits
        self._after: dict[int, Tensor] = {}
        self._last = 0

    def read(self, weight: Tensor) -> None:
        """A product reads `weight`."""
        self._after[self._last] = weight
        self._last = weight.data_ptr()

    def during_norm(self, rows: int) -> Prefetch | None:
        """What a norm of so many rows may ask for."""
        return self._next(rows, self.limits.norm)

    def during_attention(self, rows: int) -> Prefetch | None:
        """What the attention of so many rows may ask for."""
        return self._next(rows, self.limits.attention)

    def _next(self, rows: int, limit: int) -> Prefetch | None:
        weight = self._after.get(self._last)
        if weight is None or rows > self.limits.rows:
            return None
        return prefetch_of(weight, limit)
