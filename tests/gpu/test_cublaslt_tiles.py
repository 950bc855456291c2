"""Which tiles of the library are asked for."""

from __future__ import annotations

import pytest

from samebits.numerics.gpu.cublaslt_tiles import clocks_of_atom, filling_tiles, tile_numbers


@pytest.mark.parametrize(
    ("tile", "number"),
    [((8, 8), 1), ((256, 32), 35), ((8, 128), 36), ((80, 192), 136), ((768, 64), 311), ((64, 16), 312), ((128, 8), 393),
     ((128, 512), 447), ((192, 120), 461)],
    ids=str,
)  # fmt: skip
def test_tiles_have_the_numbers_of_the_librarys_header(tile: tuple[int, int], number: int) -> None:
    assert tile_numbers()[tile] == number


@pytest.mark.parametrize(("columns", "rows"), [(5120, 192), (4096, 192), (4096, 128), (10240, 192)])
def test_the_first_tile_fills_a_wave(columns: int, rows: int) -> None:
    first, *_ = filling_tiles(columns, rows, processors=132, count=4)
    tiles = -(-columns // first[0]) * -(-rows // first[1])
    assert 120 <= tiles <= 132


def test_a_tile_costs_what_crosses_shared_memory() -> None:
    assert clocks_of_atom(64, 128) == clocks_of_atom(128, 64) == ((64 + 128) + (64 + 128)) / 4
    assert clocks_of_atom(128, 256) == 256.0, "tensor cores, not memory"
    assert clocks_of_atom(72, 72) is None
