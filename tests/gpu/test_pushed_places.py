"""Which tile of a pushing product is computed when: all of them, once, and for every rank in turn."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence

import pytest

pytest.importorskip("triton")

from samebits.numerics.gpu import gemm_hopper, gemm_pushed
from samebits.numerics.gpu.tree_pushed import GROUP, GROUP_ROWS

COLUMN_TILES = 5
Place = Callable[..., tuple[int, int]]


def plain(kernel: object, **names: object) -> Place:
    """A kernel's function over plain numbers, with what it names given."""
    return types.FunctionType(kernel.fn.__code__, names)  # type: ignore[attr-defined,return-value]


GL = types.SimpleNamespace(minimum=min)
tile_place = plain(gemm_hopper.tile_place, gl=GL)
dealt_place = plain(gemm_pushed.dealt_place, gl=GL, tile_place=tile_place, GROUP_ROWS=GROUP_ROWS)


def places(rows: int, ranks: int, rank: int, groups: int, turns: bool) -> list[tuple[int, int]]:
    row_tiles = -(-rows // (groups * GROUP_ROWS))
    return [
        dealt_place(tile, row_tiles, COLUMN_TILES, rows // ranks, rank, GROUP, groups, turns)
        for tile in range(row_tiles * COLUMN_TILES)
    ]


def owners(found: Sequence[tuple[int, int]], rows: int, ranks: int, groups: int) -> list[int]:
    return [row_tile * groups * GROUP_ROWS * ranks // rows for row_tile, _ in found]


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_every_tile_is_computed_once(ranks: int, groups: int, turns: bool) -> None:
    for rows in (96, 128, 192, 256, 384, 512, 768, 1536, 2048, 3072, 8192, 8448):
        for rank in range(ranks):
            found = places(rows, ranks, rank, groups, turns)
            row_tiles = -(-rows // (groups * GROUP_ROWS))
            assert sorted(found) == [
                (row, column) for row in range(row_tiles) for column in range(COLUMN_TILES)
            ]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_come_in_turn_and_no_two_begin_with_the_same_one(ranks: int) -> None:
    first = []
    for rank in range(ranks):
        to = owners(places(2048, ranks, rank, 1, True), 2048, ranks, 1)
        first.append(to[0])
        assert to[:ranks] == [(rank + 1 + turn) % ranks for turn in range(ranks)]
        # Every run of as many tiles as there are ranks is for all of them: the way is used evenly.
        assert all(len(set(to[at : at + ranks])) == ranks for at in range(0, len(to), ranks))
        one_after_the_other = owners(places(2048, ranks, rank, 1, False), 2048, ranks, 1)
        assert len(set(one_after_the_other[:2])) == 1
    assert sorted(first) == list(range(ranks))
