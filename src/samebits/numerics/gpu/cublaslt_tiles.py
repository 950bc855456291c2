"""Tiles of cuBLASLt that fill a card, beyond those that it proposes by itself.

With some hundred rows a product has about as many tiles as a card has multiprocessors, and K may not be cut. The
library's proposals then leave many multiprocessors without work, or ask for clusters, which do not fit everywhere. It
has kernels for every tile whose sides are multiples of 8 and of 64: the best are those of which the last wave is full.
"""

from __future__ import annotations

import functools

WARPGROUP_ROWS, WIDEST = 64, 256
"""One tensor-core product of four warps has so many rows on its left side, and at most so many columns."""
MOST_GROUPS, MOST_SUMS = 4, 512
"""Groups of four warps of a program, and columns of all of their sums, that registers hold."""
FIRST = (
    "8x8 8x16 16x8 8x32 16x16 32x8 8x64 16x32 32x16 64x8 32x32 32x64 64x32 32x128 64x64 128x32 64x128 128x64 64x256 "
    "128x128 256x64 64x512 128x256 256x128 512x64 64x96 96x64 96x128 128x160 160x128 192x128 128x192 128x96 "
    "32x256 256x32"
)
"""Tiles 1 to 35 of cublasLtMatmulTile_t; those behind follow a rule."""
LARGEST_SIDE, LARGEST_TILE, LARGEST_WIDE_TILE = 768, 49152, 65536


@functools.cache
def tile_numbers() -> dict[tuple[int, int], int]:
    """(columns, rows) of a tile of the result -> its number in cublasLtMatmulTile_t."""
    first = [tuple(map(int, name.split("x"))) for name in FIRST.split()]
    eighths, sixties = range(8, LARGEST_SIDE + 1, 8), range(64, LARGEST_SIDE + 1, 64)
    tall = [(m, n) for m in eighths for n in sixties if m * n <= LARGEST_TILE]
    wide = [(64, n) for n in eighths if 64 * n <= LARGEST_TILE]
    wider = [(m, n) for m in (128, 192, 256) for n in eighths if m * n <= LARGEST_WIDE_TILE]
    distinct = dict.fromkeys((*first, *tall, *wide, *wider))
    return {(side[0], side[1]): number for number, side in enumerate(distinct, start=1)}


def clocks_of_atom(columns: int, rows: int) -> float | None:
    """About how many clocks a multiprocessor spends on an atom of a tile; None where no kernel is known to compute it.

    Shared memory moves 128 bytes a clock: both operands once into it, and out of it the left one, 64 lines of each
    group, once, and the right one once for each group. Tensor cores multiply 64 lines by two columns a clock."""
    found = [
        max(groups * width / 2, (groups * (WARPGROUP_ROWS + width) + columns + rows) / 4)
        for left, width in ((columns, rows), (rows, columns))
        for groups in [left // WARPGROUP_ROWS]
        if left % WARPGROUP_ROWS == 0
        and width <= WIDEST
        and groups <= MOST_GROUPS
        and groups * width <= MOST_SUMS
    ]
    return min(found, default=None)


def filling_tiles(columns: int, rows: int, processors: int, count: int) -> list[tuple[int, int]]:
    """The `count` tiles, (columns, rows), that finish a product of so many columns and rows soonest on a card with so
    many multiprocessors, each of which computes a tile at a time."""
    ranked = []
    for tile in tile_numbers():
        clocks = clocks_of_atom(*tile)
        if clocks is not None:
            tiles = -(-columns // tile[0]) * -(-rows // tile[1])
            ranked.append((-(-tiles // processors) * clocks, tile))
    return [tile for _, tile in sorted(ranked)[:count]]
