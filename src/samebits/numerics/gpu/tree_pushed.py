"""Row-parallel products that write their sums to the ranks that add them, for the prover and the tuner.

The clause is that of `tree_operator`. In a proof all shares lie in one output; in service each lies in the memory of
the rank that owns it. The binary is the same: where it writes stands in a table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.numerics.gpu.buckets import BUCKETS
from samebits.numerics.gpu.gemm_candidates import mapped, processors, unit_of
from samebits.numerics.gpu.launch import KernelSource, blocks, load, swizzled_descriptor, target_name
from samebits.numerics.gpu.operator import Recipe, Round
from samebits.numerics.gpu.owners import Owners
from samebits.numerics.gpu.prover import Candidate, Tensors
from samebits.numerics.gpu.tree_operator import (
    MOST_SUMS,
    TreeProblem,
    reference_source,
    tree_rounds,
)

DEPTH = 64
GROUP = 8
GROUP_ROWS = 64
MOST_ROWS = BUCKETS[-1]
SHARED_BYTES = (227 << 10) - 2048
PROOF_RANK, PROOF_RANKS = 1, 2


@dataclass(frozen=True)
class PushedTile:
    """How one kernel cuts a product."""

    rows: int
    """64 or 128: one group of warps or two"""
    columns: int
    stages: int
    flat: bool
    """results are laid out in whole lines before they are written"""
    turns: bool = False
    """rows of the ranks come in turn, not one rank's after the other's"""
    least_rows: int = 1
    most_rows: int = MOST_ROWS
    """the buckets for which it is worth trying: the tuner sees no rank but its own"""

    @property
    def name(self) -> str:
        return (
            f"pushed {self.rows}x{self.columns}x{DEPTH} s{self.stages}"
            + " flat" * self.flat
            + " in turn" * self.turns
        )

    @property
    def groups(self) -> int:
        return self.rows // GROUP_ROWS

    def fits(self, problem: TreeProblem, bucket: int, target: str) -> bool:
        """Whether a leaf is a whole number of blocks, at least two, and registers and shared memory hold the sums."""
        if not self.least_rows <= bucket <= self.most_rows:
            return False
        if target != "sm_90" or problem.act.itemsize != 2 or problem.out is not torch.float32:
            return False
        if problem.leaves > 4 or problem.leaf % DEPTH or problem.leaf < 2 * DEPTH or problem.columns % 4:
            return False
        sums = problem.leaves.bit_length() * self.columns // 2
        shared = (self.rows + self.columns) * DEPTH * 2 * self.stages
        shared += self.rows * self.columns * 4 * self.flat
        return sums <= MOST_SUMS and shared <= SHARED_BYTES

    def source(self, problem: TreeProblem) -> KernelSource:
        from samebits.numerics.gpu.gemm_pushed import pushed_gemm  # the interpreter knows no Gluon

        x, weight = ((GROUP_ROWS, DEPTH), (self.columns, DEPTH))
        maps = (swizzled_descriptor(problem.act, x), swizzled_descriptor(problem.act, weight))
        units = (unit_of(problem.columns), unit_of(problem.depth))
        return KernelSource(
            pushed_gemm, (*maps, "*i64", "i32", "i32", "i32", "i32", "i32"),
            (*units, self.columns, DEPTH, GROUP, self.stages, problem.leaves, self.groups, self.flat, self.turns), 4, 1,
        )  # fmt: skip


TILES = (
    PushedTile(128, 128, 4, flat=True, turns=True, least_rows=1024),
    PushedTile(128, 64, 6, flat=True, most_rows=512),
    PushedTile(64, 128, 7, flat=True, most_rows=768),
    PushedTile(64, 128, 9, flat=False, most_rows=256),
    PushedTile(128, 128, 6, flat=False, most_rows=256),
)
"""With many rows the way is full, and only whole lines fill it well; it is full for less of the time where rows of all
ranks come in turn. With few rows, and narrower tiles, that gains nothing. One tile serves from 1,024 rows on, others
below: which of the two is faster depends on the way, of which a tuner on one GPU sees nothing."""


class PushedProduct:
    """A tile's kernel at one shape."""

    def __init__(self, tile: PushedTile, problem: TreeProblem) -> None:
        self._tile, self._problem = tile, problem
        self._kernel = load(tile.source(problem))
        self.digest = self._kernel.digest

    def run(self, x: Tensor, weight: Tensor, owners: Owners) -> None:
        """x act [rows, in of this rank] -> a share of the sums to each owner."""
        tile, problem, rows = self._tile, self._problem, x.shape[0]
        maps = (mapped(x, (GROUP_ROWS, DEPTH)), mapped(weight, (tile.columns, DEPTH)))
        tiles = blocks(rows, tile.rows) * blocks(problem.columns, tile.columns)
        self._kernel.launch(
            (min(tiles, processors(x.device)), 1, 1), *maps, owners.table,
            rows, problem.columns // unit_of(problem.columns), problem.depth // unit_of(problem.depth),
            owners.rows, owners.rank,
        )  # fmt: skip


def owners_of(out: Tensor) -> Owners:
    """As if ranks of a proof owned the rows of one output, where they belong."""
    rows = out.shape[0] // PROOF_RANKS
    share = rows * out.shape[1] * out.element_size()
    places = [out.data_ptr() + (rank - PROOF_RANK) * share for rank in range(PROOF_RANKS)]
    return Owners(torch.tensor(places, dtype=torch.int64, device=out.device), PROOF_RANK, rows)


def tile_candidate(tile: PushedTile, problem: TreeProblem) -> Candidate:
    """A tile for the prover, whose owners are made when it meets an output, ahead of any capture."""
    problem.check()
    product = PushedProduct(tile, problem)
    owners: dict[tuple[int, int], Owners] = {}

    def run(inputs: Tensors, outputs: Tensors) -> None:
        out = outputs[0]
        place = out.data_ptr(), out.shape[0]
        if place not in owners:
            owners[place] = owners_of(out)
        product.run(inputs[0], inputs[1], owners[place])

    return Candidate(tile.name, product.digest, run)


def fitting(problem: TreeProblem, bucket: int) -> Iterator[PushedTile]:
    """The tiles for a problem on this device."""
    target = target_name()
    return (tile for tile in TILES if tile.fits(problem, bucket, target))


class PushedOperator:
    """Row-parallel products of `tp-invariant` that are written to their owners, on one device."""

    clause = "gemm tree, pushed"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sources(self, problem: TreeProblem, buckets: Sequence[int]) -> Iterable[KernelSource]:
        yield reference_source(problem)
        for bucket in buckets:
            yield from (tile.source(problem) for tile in fitting(problem, bucket))

    def recipes(self, problem: TreeProblem, bucket: int) -> Iterable[Recipe]:
        for tile in fitting(problem, bucket):
            yield Recipe(tile.name, functools.partial(tile_candidate, tile, problem))

    def restore(self, problem: TreeProblem, bucket: int, name: str, identity: str) -> Recipe | None:
        return next((recipe for recipe in self.recipes(problem, bucket) if recipe.name == name), None)

    def rounds(self, problem: TreeProblem, buckets: Sequence[int]) -> Iterator[Round]:
        return tree_rounds(problem, buckets, self.device)
