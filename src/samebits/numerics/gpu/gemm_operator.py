"""The GEMM clause for the prover and the tuner."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.numerics.gpu import gemm
from samebits.numerics.gpu.gemm_candidates import (
    AHEAD,
    PLAIN,
    Tile,
    library_recipes,
    parted_recipes,
    restored_library_recipe,
    tile_recipe,
    tiles_on,
    unit_of,
)
from samebits.numerics.gpu.gemm_problem import ATOM, GemmProblem, proof_inputs
from samebits.numerics.gpu.gemm_trials import RowTrials
from samebits.numerics.gpu.launch import KernelSource, blocks, load, pointer, target_name
from samebits.numerics.gpu.norm import rms_norm
from samebits.numerics.gpu.operator import Recipe, Round, Workload
from samebits.numerics.gpu.panel_candidates import PanelProblem, PanelTile, panel_recipe, panel_tile
from samebits.numerics.gpu.prover import Candidate, Tensors

LIBRARY_PROPOSALS = 8
FEWER_PROPOSALS = ((32, 3), (64, 4), (512, 5))
"""Up to so many rows, so many: there other kernels are the fastest, or tiles that the library does not propose."""
PARTED_PROPOSALS = 2
DEPENDENT_ROWS, NORM_WIDTH = 64, 4096
"""Up to so many rows a product is timed behind a short kernel, whose end hides the launch of some candidates."""
LASTING_ROWS = 8192
"""The largest steps follow each other for as long as prompts wait; from so many rows on it counts what they draw."""
MOST_COPIES = 32
"""Of weights so small that they stay in the cache anyway."""


def proposals_for(bucket: int) -> int:
    """How many of the library's proposals are tried."""
    return next((count for rows, count in FEWER_PROPOSALS if bucket <= rows), LIBRARY_PROPOSALS)


def reference_source(problem: GemmProblem) -> KernelSource:
    """`chain_gemm`, one atom after another."""
    tile = reference_tile(problem)
    act = pointer(problem.act)
    return KernelSource(
        gemm.chain_gemm,
        (act, act, act, pointer(problem.out), "i32", "i32", "i32"),
        (unit_of(problem.columns), unit_of(problem.depth), tile, tile, ATOM, problem.bias),
        warps=4,
        stages=1,
    )


def reference_tile(problem: GemmProblem) -> int:
    """Rows and columns of a program of the reference."""
    return 64 if problem.act.itemsize == 2 else 32


def reference_candidate(problem: GemmProblem) -> Candidate:
    """The clause on this device."""
    kernel = load(reference_source(problem))
    tile = reference_tile(problem)

    def run(inputs: Tensors, outputs: Tensors) -> None:
        x, weight = inputs[0], inputs[1]
        bias = inputs[2] if problem.bias else x
        grid = (blocks(x.shape[0], tile), blocks(problem.columns, tile), 1)
        columns = problem.columns // unit_of(problem.columns)
        kernel.launch(
            grid, x, weight, bias, outputs[0], x.shape[0], columns, problem.depth // unit_of(problem.depth)
        )

    return Candidate("reference", kernel.digest, run)


def product_trials(problem: GemmProblem, rows: int, device: torch.device) -> RowTrials:
    """The reference's results on every case, at `rows` rows."""
    return RowTrials.of(reference_candidate(problem), proof_inputs(problem, rows, device), problem.output)


def single_panels(problem: GemmProblem) -> PanelProblem:
    return PanelProblem(problem.columns, problem.depth, problem.act, problem.out, bias=problem.bias)


@dataclass(frozen=True)
class Offer:
    """What is tried for a product."""

    panels: PanelTile | None
    tiles: list[Tile]

    @staticmethod
    def of(problem: GemmProblem, bucket: int, target: str) -> Offer:
        """One kernel that starts early, and the portable tile; else all that fit."""
        panels = panel_tile(single_panels(problem), bucket, target)
        return Offer(panels, [PLAIN] if panels else tiles_on(problem, bucket, target))

    @property
    def starts_early(self) -> bool:
        return self.panels is not None or any(tile.kind == AHEAD for tile in self.tiles)

    def sources(self, problem: GemmProblem, bucket: int) -> Iterator[KernelSource]:
        if self.panels is not None:
            yield self.panels.source(single_panels(problem))
        yield from (tile.source(problem, bucket) for tile in self.tiles)

    def recipes(self, problem: GemmProblem, bucket: int) -> Iterator[Recipe]:
        if self.panels is not None:
            yield panel_recipe(self.panels, single_panels(problem))
        yield from (tile_recipe(tile, problem, bucket) for tile in self.tiles)


class GemmOperator:
    """Linear layers and logits on one device.

    All buckets of a problem are held against one run of the reference, at the largest bucket that is asked for: a
    candidate at M = 1 must give the bits that the row has in a batch of thousands.
    """

    clause = "gemm"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sources(self, problem: GemmProblem, buckets: Sequence[int]) -> Iterable[KernelSource]:
        yield reference_source(problem)
        for bucket in buckets:
            yield from Offer.of(problem, bucket, target_name()).sources(problem, bucket)

    def recipes(self, problem: GemmProblem, bucket: int) -> Iterable[Recipe]:
        offer = Offer.of(problem, bucket, target_name())
        if not offer.starts_early:
            yield from library_recipes(problem, bucket, proposals_for(bucket))
            yield from parted_recipes(problem, bucket, PARTED_PROPOSALS)
        yield from offer.recipes(problem, bucket)

    def restore(self, problem: GemmProblem, bucket: int, name: str, identity: str) -> Recipe | None:
        if name.startswith("cublaslt "):
            return restored_library_recipe(problem, bucket, name, identity)
        recipes = Offer.of(problem, bucket, target_name()).recipes(problem, bucket)
        return next((recipe for recipe in recipes if recipe.name == name), None)

    def rounds(self, problem: GemmProblem, buckets: Sequence[int]) -> Iterator[Round]:
        trials = product_trials(problem, max(buckets), self.device)
        weights = timing_weights(problem, self.device)
        for bucket in buckets:
            work = functools.partial(timing_workload, problem, bucket, weights, lasts(bucket, buckets))
            yield Round(bucket, trials.trial(bucket), work)


def lasts(bucket: int, buckets: Sequence[int]) -> bool:
    """Whether a bucket is that of steps which follow each other for seconds."""
    return bucket == max(buckets) >= LASTING_ROWS


def timing_weights(problem: GemmProblem, device: torch.device) -> Tensors:
    """Copies of random weights that together exceed the second-level cache twice."""
    size = problem.columns * problem.depth * problem.act.itemsize
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    generator = torch.Generator(device).manual_seed(2)

    def weight() -> Tensor:
        values = torch.randn(problem.columns, problem.depth, device=device, generator=generator)
        return values.mul_(problem.depth**-0.5).to(problem.act)

    return tuple(weight() for _ in range(min(MOST_COPIES, max(2, 1 + 2 * cache // size))))


def timing_workload(problem: GemmProblem, bucket: int, weights: Tensors, lasting: bool = False) -> Workload:
    """One product with each copy of the weights."""
    device = weights[0].device
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(bucket, problem.depth, device=device, generator=generator).to(problem.act)
    out = torch.empty(bucket, problem.columns, dtype=problem.out, device=device)
    bias = (torch.zeros(problem.columns, dtype=problem.act, device=device),) if problem.bias else ()
    sets = tuple(((x, weight, *bias), (out,)) for weight in weights)
    between = short_kernel(bucket, problem.act, device) if bucket <= DEPENDENT_ROWS else None
    return Workload(sets, problem.bytes(bucket), problem.operations(bucket), between, lasting)


def short_kernel(rows: int, act: torch.dtype, device: torch.device) -> Callable[[], None]:
    """A norm of rows, which stands ahead of most products of a decode step."""
    x = torch.ones(rows, NORM_WIDTH, dtype=act, device=device)
    weight, out = torch.ones(NORM_WIDTH, dtype=act, device=device), torch.empty_like(x)

    def run() -> None:
        rms_norm(x, weight, 1e-6, out)

    return run
