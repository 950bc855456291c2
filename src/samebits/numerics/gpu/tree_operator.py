"""The row-parallel GEMM of `tp-invariant` for the prover and the tuner."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from samebits.errors import NumericsError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu import tree
from samebits.numerics.gpu.gemm_candidates import Tile, unit_of
from samebits.numerics.gpu.gemm_operator import timing_weights, timing_workload
from samebits.numerics.gpu.gemm_problem import ATOM, GemmProblem, proof_inputs
from samebits.numerics.gpu.gemm_trials import RowTrials
from samebits.numerics.gpu.launch import KernelSource, blocks, load, pointer, target_name
from samebits.numerics.gpu.operator import Recipe, Round
from samebits.numerics.gpu.prover import Candidate, Tensors

REFERENCE_TILE = 32


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


def tree_source(tile: Tile, problem: TreeProblem, bucket: int) -> KernelSource:
    act = pointer(problem.act)
    masks = tile.masks(problem.product, bucket)[:2]
    return KernelSource(
        tree.tree_gemm,
        (act, act, pointer(problem.out), "i32", "i32", "i32"),
        (
            unit_of(problem.columns), unit_of(problem.depth), tile.rows, tile.columns, tile.depth, tile.group,
            tile.swap, *masks, problem.leaves,
        ),
        tile.warps,
        tile.stages,
    )  # fmt: skip


def fits(tile: Tile, problem: TreeProblem, bucket: int, target: str) -> bool:
    """Whether a leaf is a whole number of the tile's blocks of K, at least two."""
    return problem.leaf % (2 * tile.depth) == 0 and tile.fits(problem.product, bucket, target)


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


def _candidate(
    source: KernelSource, problem: TreeProblem, name: str, tiles: tuple[int, int], flat: bool
) -> Candidate:
    problem.check()
    kernel = load(source)
    columns, depth = problem.columns // unit_of(problem.columns), problem.depth // unit_of(problem.depth)

    def run(inputs: Tensors, outputs: Tensors) -> None:
        rows = inputs[0].shape[0]
        row_tiles, column_tiles = blocks(rows, tiles[0]), blocks(problem.columns, tiles[1])
        grid = (row_tiles * column_tiles, 1, 1) if flat else (row_tiles, column_tiles, 1)
        kernel.launch(grid, inputs[0], inputs[1], outputs[0], rows, columns, depth)

    return Candidate(name, kernel.digest, run)


def reference_candidate(problem: TreeProblem) -> Candidate:
    """The clause on this device."""
    return _candidate(
        reference_source(problem), problem, "reference", (REFERENCE_TILE, REFERENCE_TILE), False
    )


def tile_candidate(tile: Tile, problem: TreeProblem, bucket: int) -> Candidate:
    return _candidate(tree_source(tile, problem, bucket), problem, tile.name, (tile.rows, tile.columns), True)


def tiles_for(bucket: int) -> tuple[Tile, ...]:
    """The tiles that are worth trying; the last one is portable and fits every depth that the contract allows."""
    rows = 16 if bucket <= 16 else 32 if bucket <= 32 else 64
    decode = (
        Tile(rows, 32, 256, 4, 4),
        Tile(rows, 32, 128, 4, 6),
        Tile(rows, 64, 128, 4, 5, swap=True),
        Tile(rows, 64, 64, 4, 8, swap=True),
    )
    # Four accumulators a tile: larger ones do not fit the registers.
    prefill = (
        Tile(128, 64, 64, 8, 4),
        Tile(64, 128, 64, 8, 4),
        Tile(64, 128, 64, 8, 4, swap=True),
        Tile(64, 64, 64, 4, 5),
    )
    return (*(decode if bucket <= 64 else prefill), Tile(64, 64, 32, 4, 3), Tile(32, 32, ATOM, 4, 2))


class TreeOperator:
    """Row-parallel products of `tp-invariant` on one device."""

    clause = "gemm tree"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sources(self, problem: TreeProblem, buckets: Sequence[int]) -> Iterable[KernelSource]:
        yield reference_source(problem)
        for bucket in buckets:
            yield from (tree_source(tile, problem, bucket) for tile in self._tiles(problem, bucket))

    def recipes(self, problem: TreeProblem, bucket: int) -> Iterable[Recipe]:
        for tile in self._tiles(problem, bucket):
            yield Recipe(tile.name, functools.partial(tile_candidate, tile, problem, bucket))

    def restore(self, problem: TreeProblem, bucket: int, name: str, identity: str) -> Recipe | None:
        return next((recipe for recipe in self.recipes(problem, bucket) if recipe.name == name), None)

    def rounds(self, problem: TreeProblem, buckets: Sequence[int]) -> Iterator[Round]:
        product = problem.product
        inputs = proof_inputs(product, max(buckets), self.device)
        trials = RowTrials.of(reference_candidate(problem), inputs, product.output)
        weights = timing_weights(product, self.device)
        for bucket in buckets:
            yield Round(
                bucket, trials.trial(bucket), functools.partial(timing_workload, product, bucket, weights)
            )

    def _tiles(self, problem: TreeProblem, bucket: int) -> Iterator[Tile]:
        target = target_name()
        return (tile for tile in tiles_for(bucket) if fits(tile, problem, bucket, target))
