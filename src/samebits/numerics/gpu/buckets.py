"""Buckets of M: the only row counts that an operator on a GPU ever sees.

A step's rows are padded to the next bucket, so that every kernel and every library algorithm meets only row
counts at which it was proven. Padding rows own a page of their own and belong to no request.
"""

from __future__ import annotations

from bisect import bisect_left

from samebits.errors import NumericsError

BUCKETS = (
    *(1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768),
    *(1024, 1536, 2048, 3072, 4096, 6144, 8192, 8448, 12288, 16384, 16896),
)
"""Row counts, ascending. From 33 rows on a product costs about what 64 cost: the weights' bytes, and kernels that
start early have tiles of 64. 8,448 and 16,896 are 66 and 132 tiles of 128 rows, for the 132 multiprocessors of an
H200."""

USUAL_STEP, TILE_ROWS = 8192, 128
"""A step that is large enough for long prompts, and the rows of a product's tile or of half of one."""


def bucket_of(rows: int) -> int:
    """The smallest bucket that holds `rows`. Raises `NumericsError` where none does."""
    if not 1 <= rows <= BUCKETS[-1]:
        raise NumericsError(
            f"a step of {rows} rows fits no bucket: they reach from 1 to {BUCKETS[-1]}; cut the step into smaller ones"
        )
    return BUCKETS[bisect_left(BUCKETS, rows)]


def buckets_up_to(rows: int) -> tuple[int, ...]:
    """The buckets that steps of 1 to `rows` rows fall into."""
    return BUCKETS[: BUCKETS.index(bucket_of(rows)) + 1]


def filling_step(multiprocessors: int) -> int:
    """Rows of a large step whose products leave no multiprocessor idle at their end: a bucket from 8,192 rows on, and
    less than half as large again, in which tiles of two multiprocessors' rows come out even; 8,192 where there is none.
    """
    even = max(multiprocessors // 2, 1) * TILE_ROWS
    found = (rows for rows in BUCKETS if USUAL_STEP <= rows < 3 * USUAL_STEP // 2 and rows % even == 0)
    return next(found, USUAL_STEP)
