"""Candidates that compute few rows in wide tiles (`gemm_wide`): of the GEMM clause, and of its pair with activation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from samebits.numerics.gpu.gemm_candidates import (
    EARLY_ROWS,
    HOPPER_PROCESSORS,
    LEAST_SHARE,
    mapped,
    processors,
    unit_of,
)
from samebits.numerics.gpu.launch import KernelSource, blocks, load, pointer, swizzled_descriptor
from samebits.numerics.gpu.operator import Recipe
from samebits.numerics.gpu.panel_candidates import PanelProblem, PanelTile, panel_tile
from samebits.numerics.gpu.prover import Candidate, Tensors

GROUP_LINES, PIECE, BAND = 64, 64, 8
"""As in `gemm_wide`."""
SHARED_BYTES = 225 << 10
"""Memory of a program that operands may fill."""
MOST_LEAVED = 64
"""With more rows the registers do not hold the sums of a tree."""


@dataclass(frozen=True)
class WideTile:
    """How `wide_gemm` cuts a problem."""

    rows: int
    """of a program, at most"""
    groups: int
    lines: int
    """of a group's 64, those that are its own"""
    depth: int
    stages: int
    x_stages: int
    wait: int
    """dependent launch, see gemm.py"""
    ahead: int
    """of the stages, those that are filled before the wait"""
    row_tiles: int = 1
    """programs that share a tile's columns, each with `rows` rows; they start together"""

    @property
    def most_rows(self) -> int:
        """At most so many are computed."""
        return self.rows * self.row_tiles

    @property
    def name(self) -> str:
        lines = f"{self.groups}x{self.lines}"
        return (
            f"wide {self.rows}x{lines}x{self.depth} s{self.stages}+{self.x_stages} wait {self.wait} ahead {self.ahead}"
            + f" by {self.row_tiles}" * (self.row_tiles > 1)
        )

    @property
    def unit(self) -> int:
        """Lines that are copied at a time: a power of two."""
        return self.lines & -self.lines

    def columns(self, problem: PanelProblem) -> int:
        """Columns of the result that a tile has."""
        return self.groups * self.lines // problem.panels

    def shared(self) -> int:
        """Bytes of both rings."""
        weights = self.stages * self.depth * self.groups * self.lines + (GROUP_LINES - self.lines) * PIECE
        return 2 * (weights + self.x_stages * self.depth * self.rows)

    def fills(self, problem: PanelProblem) -> bool:
        """Whether every program has one tile, and most multiprocessors a program."""
        programs = problem.width // self.columns(problem) * self.row_tiles
        return LEAST_SHARE * HOPPER_PROCESSORS <= programs <= HOPPER_PROCESSORS

    def fits(self, problem: PanelProblem, bucket: int, target: str) -> bool:
        """Whether this tile can compute a problem on an architecture."""
        return (
            target == "sm_90"
            and problem.act.itemsize == 2
            and not problem.bias
            and bucket <= self.most_rows
            and (problem.leaves == 1 or self.rows <= MOST_LEAVED)
            and problem.width % self.columns(problem) == 0
            and (problem.panels == 1 or self.lines == GROUP_LINES)
            and problem.depth % (problem.leaves * self.depth) == 0
            and max(self.x_stages, self.ahead) <= self.stages
            and self.shared() <= SHARED_BYTES
        )

    def source(self, problem: PanelProblem) -> KernelSource:
        """The binary; most problems share one."""
        from samebits.numerics.gpu.gemm_wide import wide_gemm  # the interpreter knows no Gluon

        x = swizzled_descriptor(problem.act, (self.rows, PIECE))
        weight = swizzled_descriptor(problem.act, self.weight_block(problem))
        units = (unit_of(problem.width), unit_of(problem.depth))
        start, group = registers(self.rows, self.groups)
        return KernelSource(
            wide_gemm, (x, weight, pointer(problem.out), "i32", "i32", "i32"),
            (
                *units, self.rows, self.depth, self.stages, self.x_stages, self.groups, self.lines,
                problem.panels == 2, problem.leaves, self.wait, self.ahead, self.row_tiles, group,
            ),
            4, 1, self.wait > 0, start,
        )  # fmt: skip

    def weight_block(self, problem: PanelProblem) -> tuple[int, ...]:
        """What is copied at a time, of a weight or of a pair's."""
        bands = GROUP_LINES // (2 * BAND)
        return (bands, 2, BAND, PIECE) if problem.panels == 2 else (self.unit, PIECE)

    def weight_map(self, weight: Tensor, problem: PanelProblem) -> TensorDescriptor:
        """A pair's weight as eight columns of gate, the same eight of up, and so on."""
        if problem.panels == 1:
            return mapped(weight, (self.unit, PIECE))
        width, depth = problem.width, problem.depth
        shape, strides = [width // BAND, 2, BAND, depth], [BAND * depth, width * depth, depth, 1]
        return TensorDescriptor(weight, shape, strides, list(self.weight_block(problem)))

    def candidate(self, problem: PanelProblem) -> Candidate:
        """The kernel on (x, weight) -> (out,)."""
        kernel = load(self.source(problem))
        lengths = (problem.width // unit_of(problem.width), problem.depth // unit_of(problem.depth))
        tiles = blocks(problem.width, self.columns(problem))

        def run(inputs: Tensors, outputs: Tensors) -> None:
            x, weight, out = inputs[0], inputs[1], outputs[0]
            maps = (mapped(x, (self.rows, PIECE)), self.weight_map(weight, problem))
            programs = min(tiles, processors(out.device) // self.row_tiles)
            kernel.launch((programs, 1, 1), *maps, out, x.shape[0], *lengths, cluster=self.row_tiles)

        return Candidate(self.name, kernel.digest, run)


def registers(rows: int, groups: int) -> tuple[int, int]:
    """Of a thread at the kernel's start, and of a group's behind the first: few enough that a norm fits beside it."""
    if groups < 3:
        return 96, 96
    return next(
        found for limit, found in ((32, (72, 80)), (64, (80, 96)), (128, (104, 128))) if rows <= limit
    )


EarlyTile = PanelTile | WideTile


def early_tile(problem: PanelProblem, bucket: int, target: str) -> EarlyTile | None:
    """What computes few rows of a problem and starts early on an architecture. One: see `gemm_candidates.tiles_on`."""
    if bucket <= EARLY_ROWS:
        return panel_tile(problem, bucket, target)
    tiles = WIDE_PAIRS if problem.panels == 2 else WIDE_SINGLES
    return next((tile for tile in tiles if tile.fits(problem, bucket, target) and tile.fills(problem)), None)


def early_recipe(tile: EarlyTile, problem: PanelProblem) -> Recipe:
    return Recipe(tile.name, lambda: tile.candidate(problem))


WIDE_PAIRS = (WideTile(128, 3, 64, 64, 5, 5, 1, 5),)
WIDE_SINGLES = (WideTile(64, 2, 48, 64, 11, 11, 1, 11, 2), WideTile(64, 1, 64, 128, 7, 7, 1, 7, 2))
"""Up to 128 rows."""
