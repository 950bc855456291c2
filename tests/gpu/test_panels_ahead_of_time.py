"""Products in panels, compiled for a GPU that is not here."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from ahead_of_time import estimates, fusable_operations

from samebits.numerics.gpu.gated_operator import GatedProblem
from samebits.numerics.gpu.gemm_candidates import AHEAD, PLAIN
from samebits.numerics.gpu.gemm_operator import Offer, single_panels
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.launch import PORTABLE, TARGETS
from samebits.numerics.gpu.panel_candidates import (
    PAIRS,
    PIECE,
    SINGLES,
    WIDEST_SINGLE,
    PanelProblem,
    PanelTile,
)
from samebits.numerics.gpu.tree_operator import TreeProblem, tiles_on

BF16 = torch.bfloat16
SINGLE = single_panels(GemmProblem(4096, 4096, BF16, BF16))
PAIR = GatedProblem(12288, 4096, BF16).panels
LARGEST_PROGRAM = 227 << 10


def cases() -> list[tuple[PanelProblem, PanelTile, int]]:
    return [
        (problem, tile, limit)
        for problem, limits in ((SINGLE, SINGLES), (PAIR, PAIRS))
        for limit, tiles in limits
        for tile in tiles
    ]


@pytest.mark.parametrize(("problem", "tile", "limit"), cases(), ids=str)
def test_weights_are_asked_for_ahead_of_the_wait_and_x_behind_it(
    problem: PanelProblem, tile: PanelTile, limit: int
) -> None:
    assert tile.fits(problem, limit, "sm_90")
    compiled = tile.source(problem).compile(TARGETS["sm_90"])
    assert compiled.metadata.shared <= LARGEST_PROGRAM
    ptx = compiled.asm["ptx"]
    assert fusable_operations(ptx) == []
    assert estimates(ptx) == []
    ahead, behind = ptx.split("griddepcontrol.wait", 1)
    # A block of K is so many of 64 for each panel, and as many of x behind the wait; then all again.
    pieces = tile.depth // PIECE
    assert ahead.count("cp.async.bulk.tensor") == pieces * problem.panels
    assert behind.count("cp.async.bulk.tensor") == pieces + pieces * problem.panels + pieces
    assert "ld.global" not in ptx
    assert "griddepcontrol.launch_dependents" in ptx


@pytest.mark.parametrize(("problem", "tile", "limit"), cases(), ids=str)
def test_a_product_does_not_wait_for_the_one_before(
    problem: PanelProblem, tile: PanelTile, limit: int
) -> None:
    """A wait of the assembler's own stands in the machine code alone, and doubles a kernel's time."""
    compiled = tile.source(problem).compile(TARGETS["sm_90"])
    assert f"wgmma.wait_group.sync.aligned {tile.depth // PIECE}" in compiled.asm["ptx"]
    machine_code = compiled.asm["sass"]
    assert machine_code.count("WARPGROUP.DEPBAR") < machine_code.count("HGMMA") / 2


def test_what_does_not_fit_is_not_offered() -> None:
    tile = PAIRS[0][1][0]
    assert [name for name in PORTABLE if tile.fits(PAIR, 8, name)] == ["sm_90"]
    assert not tile.fits(PAIR, 16, "sm_90"), "a program computes all rows"
    assert not tile.fits(GatedProblem(12288 + 16, 4096, BF16).panels, 8, "sm_90")
    assert not tile.fits(GatedProblem(12288, 4096 + 64, BF16).panels, 8, "sm_90")
    assert not tile.fits(GatedProblem(12288, 4096, torch.float32).panels, 8, "sm_90")
    assert not tile.fits(single_panels(GemmProblem(4096, 4096, BF16, BF16, bias=True)), 8, "sm_90")
    assert not tile.fits(single_panels(GemmProblem(24576, 4096, BF16, BF16)), 8, "sm_90")


@pytest.mark.parametrize("bucket", [1, 8, 16, 32, 64])
def test_nothing_but_early_kernels_stands_beside_early_kernels(bucket: int) -> None:
    narrow, wide = GemmProblem(4096, 12288, BF16, BF16), GemmProblem(6144, 4096, BF16, BF16)
    assert narrow.columns <= WIDEST_SINGLE < wide.columns
    offer = Offer.of(narrow, bucket, "sm_90")
    assert offer.panels is not None and offer.tiles == [PLAIN] and offer.starts_early
    offer = Offer.of(wide, bucket, "sm_90")
    assert offer.panels is None and {tile.kind for tile in offer.tiles} == {AHEAD, PLAIN.kind}
    assert len(offer.tiles) == 2 and offer.starts_early
    tree = TreeProblem(5120, 4096, 8, BF16, BF16)
    assert {one.tile.kind for one in tiles_on(tree, bucket, "sm_90")} == {AHEAD, PLAIN.kind}
    for other in (Offer.of(narrow, bucket, "sm_100"), Offer.of(narrow, 128, "sm_90")):
        assert not other.starts_early and len(other.tiles) > 2
