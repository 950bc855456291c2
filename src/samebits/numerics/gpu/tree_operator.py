"""The row-parallel GEMM of `tp-invariant` for the prover and the tuner."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu import gemm_candidates, tree
from samebits.numerics.gpu.gemm_candidates import (
    AHEAD,
    DESCRIPTORS,
    EARLY_ROWS,
    HOPPER,
    POINTERS,
    Tile,
    launch_tile,
    mapped,
    processors,
    unit_of,
)
from samebits.numerics.gpu.gemm_operator import lasts, proposals_for, timing_weights, timing_workload
from samebits.numerics.gpu.gemm_problem import ATOM, GemmProblem, proof_inputs
from samebits.numerics.gpu.gemm_trials import RowTrials
from samebits.numerics.gpu.launch import KernelSource, blocks, load, pointer, target_name
from samebits.numerics.gpu.operator import Recipe, Round
from samebits.numerics.gpu.panel_candidates import PanelProblem, panel_recipe, panel_tile
from samebits.numerics.gpu.prover import Candidate, Tensors

REFERENCE_TILE = 32
WORKSPACE_ELEMENTS, MOST_TILES = 1 << 24, 1 << 16
MOST_SUMS = 192
"""In the registers of a thread; beyond that they spill."""
LARGEST_GRID = 256
"""No fewer programs than a GPU has multiprocessors."""


@dataclass(frozen=True)
class TreeProblem:
    """The part of a row-parallel product that one rank computes: `leaves` of the contract's leaves of K.

    Inputs (x act [rows, depth], weight act [columns, depth]), output [rows, columns]: act where this rank holds the
    whole tree, else the float32 sum of its leaves.
    """

    columns: int
    depth: int
    leaves: int
    act: torch.dtype
    out: torch.dtype

    @property
    def key(self) -> str:
        return f"{self.product.key} of {self.leaves} leaves"

    @property
    def product(self) -> GemmProblem:
        return GemmProblem(self.columns, self.depth, self.act, self.out)

    @property
    def panels(self) -> PanelProblem:
        """The same for kernels that compute it in panels."""
        return PanelProblem(self.columns, self.depth, self.act, self.out, leaves=self.leaves)

    @property
    def leaf(self) -> int:
        return self.depth // self.leaves

    def check(self) -> None:
        """Raises `NumericsError` where K cannot be cut into leaves of at least two atoms."""
        known = [count for count in (1, 2, 4, 8) if CONTRACT.leaves % count == 0]
        if self.leaves not in known or self.depth % (self.leaves * 2 * ATOM):
            raise NumericsError(
                f"a row-parallel product of depth {self.depth} cannot be cut into {self.leaves} leaves: it takes one "
                f"of {known}, and leaves of a multiple of {2 * ATOM}"
            )


@dataclass(frozen=True)
class TreeTile:
    """How one kernel cuts a tree."""

    tile: Tile
    parts: int = 1
    """programs that share a tile, each with the leaves of one subtree"""
    parked: bool = False
    """persistent programs, which keep the sum of the first half of the leaves in memory while they compute the other"""

    @property
    def name(self) -> str:
        shared = [f"in {self.parts} parts"] * (self.parts > 1)
        return " ".join([self.tile.name, *shared, *["parked"] * self.parked])

    @property
    def pieces(self) -> int:
        """Subtrees that are summed one by one."""
        return 2 if self.parked else self.parts

    def fits(self, problem: TreeProblem, bucket: int, target: str) -> bool:
        """Whether a leaf is a whole number of the tile's blocks of K, at least two, and the workspace is enough."""
        whole = problem.leaf % self.tile.depth == 0 and problem.leaf >= 2 * self.tile.depth
        if not whole or not self.tile.fits(problem.product, bucket, target):
            return False
        if problem.leaves < self.pieces or self.sums(problem) > MOST_SUMS:
            return False
        if self.tile.kind == HOPPER and problem.leaves == 8 and not self.has_room_to_park():
            return False
        if self.pieces == 1:
            return True
        tiles = blocks(bucket, self.tile.rows) * blocks(problem.columns, self.tile.columns)
        held = LARGEST_GRID if self.parked else tiles * self.parts
        enough = held * self.tile.rows * self.tile.columns <= WORKSPACE_ELEMENTS and tiles <= MOST_TILES
        return enough and self.tile.kind != POINTERS

    def has_room_to_park(self) -> bool:
        """Whether shared memory holds a sum of the tile beside the ring of operands and a rounded result."""
        tile = self.tile
        ring = (tile.rows + tile.columns) * tile.depth * 2 * tile.stages
        return ring + tile.rows * tile.columns * (4 + 1) <= (227 << 10) - 2048

    def sums(self, problem: TreeProblem) -> int:
        """Float32 values that a thread holds: of the leaf at work, and of one subtree a level below the root."""
        levels = (problem.leaves // self.pieces).bit_length()
        tile = self.tile
        threads = 32 * tile.warps
        if tile.kind == HOPPER:  # of eight leaves the first four wait in shared memory
            threads, levels = threads * tile.rows // gemm_candidates.HOPPER_ROWS, min(levels, 3)
        elif tile.kind == AHEAD:
            threads *= tile.columns // gemm_candidates.AHEAD_COLUMNS
        return levels * tile.rows * tile.columns // threads

    def source(self, problem: TreeProblem, bucket: int) -> KernelSource:
        tile = self.tile
        if self.pieces == 1:
            return tile.source(problem.product, bucket, problem.leaves)
        maps, out = tile.maps(problem.product), pointer(problem.out)
        shape = (
            unit_of(problem.columns), unit_of(problem.depth), tile.rows, tile.columns, tile.depth, tile.group,
            tile.swap, problem.leaves,
        )  # fmt: skip
        if self.parked:
            parked = (*maps, out, "*fp32", "i32", "i32", "i32", "i32")
            return KernelSource(tree.parked_tree_gemm, parked, shape, tile.warps, tile.stages)
        shared = (*maps, pointer(problem.act), out, "*fp32", "*i32", "i32", "i32", "i32")
        dependent = (self.parts, tile.wait, tile.prefetch, 32 * tile.warps)
        return KernelSource(
            tree.shared_tree_gemm, shared, (*shape, *dependent), tile.warps, tile.stages, tile.wait > 0
        )


@dataclass(frozen=True)
class Workspace:
    """Memory in which the programs of one kernel meet. A kernel that uses it never overlaps with another: all
    products of a process run on one stream, and one that may start early waits before it touches anything."""

    partials: Tensor
    """float32: sums of subtrees"""
    arrivals: Tensor
    """int32: how many programs of each tile are done; zero between kernels"""


@functools.cache
def workspace(device: torch.device) -> Workspace:
    return Workspace(
        torch.empty(WORKSPACE_ELEMENTS, dtype=torch.float32, device=device),
        torch.zeros(MOST_TILES, dtype=torch.int32, device=device),
    )


def reference_source(problem: TreeProblem) -> KernelSource:
    act = pointer(problem.act)
    return KernelSource(
        tree.tree_reference,
        (act, act, pointer(problem.out), "i32", "i32", "i32"),
        (
            unit_of(problem.columns), unit_of(problem.depth), REFERENCE_TILE, REFERENCE_TILE, ATOM, problem.leaves,
        ),
        warps=4,
        stages=1,
    )  # fmt: skip


def reference_candidate(problem: TreeProblem) -> Candidate:
    """The clause on this device."""
    problem.check()
    kernel = load(reference_source(problem))
    columns, depth = problem.columns // unit_of(problem.columns), problem.depth // unit_of(problem.depth)

    def run(inputs: Tensors, outputs: Tensors) -> None:
        rows = inputs[0].shape[0]
        grid = (blocks(rows, REFERENCE_TILE), blocks(problem.columns, REFERENCE_TILE), 1)
        kernel.launch(grid, inputs[0], inputs[1], outputs[0], rows, columns, depth)

    return Candidate("reference", kernel.digest, run)


def tree_rounds(problem: TreeProblem, buckets: Sequence[int], device: torch.device) -> Iterator[Round]:
    """What kernels of the clause are proven and timed with."""
    product = problem.product
    inputs = proof_inputs(product, max(buckets), device)
    trials = RowTrials.of(reference_candidate(problem), inputs, product.output)
    weights = timing_weights(product, device)
    for bucket in buckets:
        work = functools.partial(timing_workload, product, bucket, weights, lasts(bucket, buckets))
        yield Round(bucket, trials.trial(bucket), work)


def tile_candidate(cut: TreeTile, problem: TreeProblem, bucket: int, device: torch.device) -> Candidate:
    problem.check()
    tile, kernel = cut.tile, load(cut.source(problem, bucket))
    columns, depth = problem.columns // unit_of(problem.columns), problem.depth // unit_of(problem.depth)
    shared = workspace(device) if cut.pieces > 1 else None

    def run(inputs: Tensors, outputs: Tensors) -> None:
        if shared is None:
            launch_tile(kernel, tile, problem.product, inputs, outputs)
            return
        x, weight, out = inputs[0], inputs[1], outputs[0]
        maps = (mapped(x, (tile.rows, tile.depth)), mapped(weight, (tile.columns, tile.depth)))
        rows = x.shape[0]
        tiles = blocks(rows, tile.rows) * blocks(problem.columns, tile.columns)
        if cut.parked:
            programs = min(tiles, processors(device))
            kernel.launch((programs, 1, 1), *maps, out, shared.partials, rows, columns, depth, programs)
            return
        grid = (tiles * cut.parts, 1, 1)
        kernel.launch(grid, *maps, weight, out, shared.partials, shared.arrivals, rows, columns, depth)

    return Candidate(cut.name, kernel.digest, run)


def tiles_for(problem: TreeProblem, bucket: int) -> tuple[TreeTile, ...]:
    """The tiles that are worth trying, then the portable ones, which nothing keeps from a depth."""
    if bucket <= 64 or problem.act is torch.float32:
        few = map(TreeTile, gemm_candidates.tiles_for(problem.product, bucket)[:-1])
        rows = 16 if bucket <= 16 else 32 if bucket <= 32 else 64
        shared = Tile(rows, 64, 128, 4, 6, DESCRIPTORS, swap=True, wait=1)
        return (*few, TreeTile(shared, parts=2), *LAST)
    return (*(MIDDLE if bucket <= 512 else PREFILL), *LAST)


def starts_early(tiles: Sequence[TreeTile]) -> bool:
    return any(one.tile.kind == AHEAD for one in tiles)


def tiles_on(problem: TreeProblem, bucket: int, target: str) -> list[TreeTile]:
    """The tiles that are tried on an architecture; for few rows see `gemm_candidates.tiles_on`."""
    fitting = [tile for tile in tiles_for(problem, bucket) if tile.fits(problem, bucket, target)]
    if panel_tile(problem.panels, bucket, target) is not None:
        return [tile for tile in fitting if tile in LAST]
    if bucket <= EARLY_ROWS and starts_early(fitting):
        return [tile for tile in fitting if tile in LAST or tile.tile.kind == AHEAD]
    return fitting


class TreeOperator:
    """Row-parallel products of `tp-invariant` on one device."""

    clause = "gemm tree"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sources(self, problem: TreeProblem, buckets: Sequence[int]) -> Iterable[KernelSource]:
        yield reference_source(problem)
        for bucket in buckets:
            panels = panel_tile(problem.panels, bucket, target_name())
            if panels is not None:
                yield panels.source(problem.panels)
            yield from (tile.source(problem, bucket) for tile in tiles_on(problem, bucket, target_name()))

    def recipes(self, problem: TreeProblem, bucket: int) -> Iterable[Recipe]:
        tiles = tiles_on(problem, bucket, target_name())
        panels = panel_tile(problem.panels, bucket, target_name())
        if panels is not None:
            yield panel_recipe(panels, problem.panels)
        elif problem.leaves == 1 and not starts_early(tiles):  # a chain, which the library computes, too
            yield from gemm_candidates.library_recipes(problem.product, bucket, proposals_for(bucket))
        for tile in tiles:
            make = functools.partial(tile_candidate, tile, problem, bucket, self.device)
            yield Recipe(tile.name, make, fallback=tile in LAST)

    def restore(self, problem: TreeProblem, bucket: int, name: str, identity: str) -> Recipe | None:
        if name.startswith("cublaslt "):
            text, place = identity.split()[-1], int(name.split()[1])
            return gemm_candidates.library_recipe(problem.product, bucket, text, place)
        return next((recipe for recipe in self.recipes(problem, bucket) if recipe.name == name), None)

    def rounds(self, problem: TreeProblem, buckets: Sequence[int]) -> Iterator[Round]:
        return tree_rounds(problem, buckets, self.device)


LAST = (TreeTile(gemm_candidates.PLAIN), TreeTile(Tile(32, 32, ATOM, 4, 2)))
"""Where nothing else fits; the last fits every depth that the contract allows."""

MIDDLE = (
    TreeTile(Tile(64, 128, 64, 4, 9, HOPPER)),
    TreeTile(Tile(64, 128, 64, 4, 7, HOPPER)),
    TreeTile(Tile(64, 64, 64, 4, 12, HOPPER)),
    TreeTile(Tile(128, 64, 64, 4, 6, HOPPER)),
    TreeTile(Tile(128, 128, 64, 4, 6, HOPPER)),
    TreeTile(Tile(128, 128, 64, 4, 4, HOPPER)),
    TreeTile(Tile(64, 128, 128, 4, 4, DESCRIPTORS), parts=2),
    TreeTile(Tile(128, 128, 64, 8, 4, DESCRIPTORS), parts=2),
    TreeTile(Tile(128, 64, 128, 8, 4, DESCRIPTORS), parts=2),
    TreeTile(Tile(128, 64, 128, 8, 4, DESCRIPTORS)),
    TreeTile(Tile(128, 128, 64, 8, 4, DESCRIPTORS)),
    TreeTile(Tile(128, 128, 64, 8, 4, DESCRIPTORS), parked=True),
)
"""Too few tiles for all multiprocessors, unless several programs share one."""

PREFILL = (
    TreeTile(Tile(128, 128, 64, 4, 6, HOPPER)),
    TreeTile(Tile(128, 128, 64, 4, 4, HOPPER)),
    TreeTile(Tile(128, 128, 64, 8, 4, DESCRIPTORS), parked=True),
    TreeTile(Tile(128, 128, 64, 8, 4, DESCRIPTORS)),
)
"""Eight leaves leave no register for a fourth sum of a tile of 128 x 128: half a tree is parked."""
