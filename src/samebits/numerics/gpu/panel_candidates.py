"""Candidates that compute few rows in panels (`gemm_panels`): of the GEMM clause, and of its pair with activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samebits.numerics.gpu.gemm_candidates import (
    AHEAD_REGISTERS,
    HOPPER_PROCESSORS,
    mapped,
    processors,
    unit_of,
)
from samebits.numerics.gpu.launch import KernelSource, blocks, load, pointer, swizzled_descriptor
from samebits.numerics.gpu.operator import Recipe
from samebits.numerics.gpu.prover import Candidate, Tensors

PANEL, PIECE = 32, 64
"""Columns of a panel and elements of K in a block of shared memory, as in `gemm_panels`."""
SHARED_BYTES = 225 << 10
"""Memory of a program that operands may fill."""
WIDEST_SINGLE = HOPPER_PROCESSORS * PANEL
"""With more columns some multiprocessors would compute a second panel while others are idle; tiles of 64 serve."""


@dataclass(frozen=True)
class PanelProblem:
    """out[m, n] of weight [panels * width, depth]: x weight^T, or with two panels the gated activation of it."""

    width: int
    depth: int
    act: torch.dtype
    out: torch.dtype
    panels: int = 1
    leaves: int = 1
    """chains of K that a tree adds"""
    bias: bool = False


@dataclass(frozen=True)
class PanelTile:
    """How `panel_gemm` cuts a problem."""

    rows: int
    """at most so many are computed"""
    depth: int
    stages: int
    wait: int
    """dependent launch, see gemm.py"""

    @property
    def name(self) -> str:
        return f"panels {self.rows}x{PANEL}x{self.depth} s{self.stages} wait {self.wait}"

    def fits(self, problem: PanelProblem, bucket: int, target: str) -> bool:
        """Whether this tile can compute a problem on an architecture."""
        stage = (self.rows + PANEL * problem.panels) * self.depth * problem.act.itemsize
        return (
            target == "sm_90"
            and problem.act.itemsize == 2
            and not problem.bias
            and bucket <= self.rows
            and problem.width % PANEL == 0
            and (problem.panels == 2 or problem.width <= WIDEST_SINGLE)
            and problem.depth % (problem.leaves * self.depth) == 0
            and self.stages * stage <= SHARED_BYTES
        )

    def source(self, problem: PanelProblem) -> KernelSource:
        """The binary; most problems share one."""
        from samebits.numerics.gpu.gemm_panels import panel_gemm  # the interpreter knows no Gluon

        maps = [swizzled_descriptor(problem.act, (lines, PIECE)) for lines in (self.rows, PANEL)]
        units = (unit_of(problem.width), unit_of(problem.depth))
        return KernelSource(
            panel_gemm, (*maps, pointer(problem.out), "i32", "i32", "i32"),
            (*units, self.rows, self.depth, self.stages, problem.panels, problem.leaves, self.wait),
            4, 1, self.wait > 0, AHEAD_REGISTERS,
        )  # fmt: skip

    def candidate(self, problem: PanelProblem) -> Candidate:
        """The kernel on (x, weight) -> (out,)."""
        kernel = load(self.source(problem))
        lengths = (problem.width // unit_of(problem.width), problem.depth // unit_of(problem.depth))
        tiles = blocks(problem.width, PANEL)

        def run(inputs: Tensors, outputs: Tensors) -> None:
            x, weight, out = inputs[0], inputs[1], outputs[0]
            maps = (mapped(x, (self.rows, PIECE)), mapped(weight, (PANEL, PIECE)))
            programs = min(tiles, processors(out.device))
            kernel.launch((programs, 1, 1), *maps, out, x.shape[0], *lengths)

        return Candidate(self.name, kernel.digest, run)


def panel_tile(problem: PanelProblem, bucket: int, target: str) -> PanelTile | None:
    """What computes a problem in panels on an architecture. One: see `gemm_candidates.tiles_on`."""
    limits = PAIRS if problem.panels == 2 else SINGLES
    tiles = next((tiles for limit, tiles in limits if bucket <= limit), ())
    return next((tile for tile in tiles if tile.fits(problem, bucket, target)), None)


def panel_recipe(tile: PanelTile, problem: PanelProblem) -> Recipe:
    return Recipe(tile.name, lambda: tile.candidate(problem))


SINGLES = (
    (8, (PanelTile(8, 256, 10, 2), PanelTile(8, 128, 20, 2))),
    (16, (PanelTile(16, 256, 8, 2), PanelTile(16, 128, 16, 2))),
    (32, (PanelTile(32, 128, 12, 1),)),
    (64, (PanelTile(64, 128, 8, 1),)),
)
PAIRS = (
    (8, (PanelTile(8, 256, 5, 2), PanelTile(8, 128, 11, 2))),
    (16, (PanelTile(16, 256, 5, 2), PanelTile(16, 128, 10, 2))),
    (32, (PanelTile(32, 128, 8, 1),)),
    (64, (PanelTile(64, 128, 6, 1),)),
)
"""By the most rows, what was the fastest in a chain of a layer's products first."""
