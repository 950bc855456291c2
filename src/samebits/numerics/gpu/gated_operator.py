"""The gate and up product with its activation, for the prover and the tuner: fused kernels against the pair."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from samebits.numerics.gpu import gated
from samebits.numerics.gpu.activation import BLOCK, silu_mul_rows
from samebits.numerics.gpu.configuration import dependent_launches
from samebits.numerics.gpu.gemm_candidates import (
    PERSISTENT,
    POINTERS,
    Tile,
    mapped,
    processors,
    unit_of,
)
from samebits.numerics.gpu.gemm_operator import (
    DEPENDENT_ROWS,
    reference_candidate,
    reference_source,
    short_kernel,
    timing_weights,
)
from samebits.numerics.gpu.gemm_problem import GemmProblem, proof_inputs
from samebits.numerics.gpu.gemm_trials import RowTrials
from samebits.numerics.gpu.launch import TYPE_NAMES, KernelSource, blocks, load, pointer, target_name
from samebits.numerics.gpu.operator import Recipe, Round, Workload
from samebits.numerics.gpu.panel_candidates import PanelProblem, panel_recipe, panel_tile
from samebits.numerics.gpu.prover import Candidate, Output, Tensors

PAIR = "pair"


@dataclass(frozen=True)
class GatedProblem:
    """out[m, n] = silu(sum over k of x[m, k] weight[n, k]) * (sum over k of x[m, k] weight[width + n, k]).

    Inputs (x act [rows, depth], weight act [2 width, depth]), output act [rows, width].
    """

    width: int
    depth: int
    act: torch.dtype

    @property
    def key(self) -> str:
        return f"{self.width}x{self.depth} {TYPE_NAMES[self.act]}"

    @property
    def product(self) -> GemmProblem:
        """The product alone."""
        return GemmProblem(2 * self.width, self.depth, self.act, self.act)

    @property
    def panels(self) -> PanelProblem:
        """The whole, for kernels that compute it in panels."""
        return PanelProblem(self.width, self.depth, self.act, self.act, panels=2)

    def output(self, rows: int) -> tuple[Output, ...]:
        return (Output((rows, self.width), self.act),)

    def bytes(self, rows: int) -> int:
        return self.product.bytes(rows) - rows * self.width * self.act.itemsize


def activation_source(problem: GatedProblem) -> KernelSource:
    act = pointer(problem.act)
    waits = dependent_launches()
    return KernelSource(silu_mul_rows, (act, act), (problem.width, BLOCK, False, waits), 4, 1, waits)


def pair_candidate(problem: GatedProblem, product: Candidate) -> Candidate:
    """A product and then the activation, through memory."""
    activation = load(activation_source(problem))

    def run(inputs: Tensors, outputs: Tensors) -> None:
        x, out = inputs[0], outputs[0]
        between = torch.empty(x.shape[0], 2 * problem.width, dtype=problem.act, device=x.device)
        product.run(inputs, (between,))
        activation.launch((x.shape[0], blocks(problem.width, BLOCK), 1), between, out)

    return Candidate(PAIR, f"{product.identity} {activation.digest}", run)


def fits(tile: Tile, problem: GatedProblem, bucket: int, target: str) -> bool:
    """Whether a fused tile can compute a problem; it holds two tiles of weights."""
    if tile.kind != POINTERS and problem.width % tile.columns:
        return False  # the gate's last tile would reach into up
    whole = problem.width % tile.columns == 0
    doubled = replace(tile, columns=2 * tile.columns)
    return (not tile.wait or whole) and doubled.fits(problem.product, bucket, target)


def fused_source(tile: Tile, problem: GatedProblem, bucket: int) -> KernelSource:
    act, lengths = pointer(problem.act), ("i32", "i32", "i32")
    shape = (
        unit_of(problem.width), unit_of(problem.depth), tile.rows, tile.columns, tile.depth, tile.group, tile.swap,
    )  # fmt: skip
    dependent = (tile.wait, tile.prefetch, 32 * tile.warps)
    if tile.kind == POINTERS:
        masks = (bucket % tile.rows != 0, problem.width % tile.columns != 0, problem.depth % tile.depth != 0)
        return KernelSource(
            gated.gated_gemm, (act, act, act, *lengths), (*shape, *masks, *dependent),
            tile.warps, tile.stages, tile.wait > 0,
        )  # fmt: skip
    return KernelSource(
        gated.gated_descriptor_gemm, (*tile.maps(problem.product), act, act, *lengths, "i32"), (*shape, *dependent),
        tile.warps, tile.stages, tile.wait > 0,
    )  # fmt: skip


def fused_candidate(tile: Tile, problem: GatedProblem, bucket: int) -> Candidate:
    kernel = load(fused_source(tile, problem, bucket))
    columns, depth = problem.width // unit_of(problem.width), problem.depth // unit_of(problem.depth)

    def run(inputs: Tensors, outputs: Tensors) -> None:
        x, weight, out = inputs[0], inputs[1], outputs[0]
        rows = x.shape[0]
        tiles = blocks(rows, tile.rows) * blocks(problem.width, tile.columns)
        if tile.kind == POINTERS:
            kernel.launch((tiles, 1, 1), x, weight, out, rows, columns, depth)
            return
        maps = (mapped(x, (tile.rows, tile.depth)), mapped(weight, (tile.columns, tile.depth)))
        programs = min(tiles, processors(x.device)) if tile.kind == PERSISTENT else tiles
        kernel.launch((programs, 1, 1), *maps, weight, out, rows, columns, depth, programs)

    return Candidate(f"fused {tile.name}", kernel.digest, run)


def tiles_for(problem: GatedProblem, bucket: int) -> tuple[Tile, ...]:
    """Fused tiles that are worth trying. With more rows than these the library's product wins by more than the
    activation costs."""
    if problem.act is torch.float32:
        return ()
    limits = ((16, DECODE), (32, DECODE_32), (64, DECODE_64))
    return next((tiles for limit, tiles in limits if bucket <= limit), ())


DECODE = (
    Tile(16, 32, 64, 4, 4, wait=1),
    Tile(16, 32, 64, 4, 6, wait=1),
    Tile(16, 32, 128, 4, 3, wait=1),
    Tile(16, 64, 64, 4, 4, swap=True, wait=1),
    Tile(16, 32, 64, 4, 4),
)
DECODE_32 = (
    Tile(32, 64, 64, 4, 4, swap=True, wait=1),
    Tile(32, 64, 64, 4, 4, wait=1),
    Tile(32, 32, 128, 4, 3),
    Tile(32, 64, 64, 4, 4, swap=True),
)
DECODE_64 = (
    Tile(64, 32, 64, 4, 4, wait=1),
    Tile(64, 64, 64, 4, 4, wait=1),
    Tile(64, 64, 64, 4, 4, swap=True, wait=1),
    Tile(64, 32, 64, 4, 4),
)


class GatedOperator:
    """The first half of a gated MLP on one device. `product` gives what serves the product alone."""

    clause = "gemm and gated activation"

    def __init__(self, device: torch.device, product: Callable[[GemmProblem, int], Candidate]) -> None:
        self.device = device
        self._product = product

    def _tiles(self, problem: GatedProblem, bucket: int) -> Iterator[Tile]:
        target = target_name()
        return (tile for tile in tiles_for(problem, bucket) if fits(tile, problem, bucket, target))

    def sources(self, problem: GatedProblem, buckets: Sequence[int]) -> Iterable[KernelSource]:
        yield reference_source(problem.product)
        yield activation_source(problem)
        for bucket in buckets:
            panels = panel_tile(problem.panels, bucket, target_name())
            if panels is not None:
                yield panels.source(problem.panels)
                continue
            yield from (fused_source(tile, problem, bucket) for tile in self._tiles(problem, bucket))

    def recipes(self, problem: GatedProblem, bucket: int) -> Iterable[Recipe]:
        panels = panel_tile(problem.panels, bucket, target_name())
        if panels is not None:
            yield panel_recipe(panels, problem.panels)
        pair = functools.partial(self._pair, problem, bucket)
        yield Recipe(PAIR, pair, fallback=panels is not None)
        for tile in () if panels is not None else self._tiles(problem, bucket):
            make = functools.partial(fused_candidate, tile, problem, bucket)
            yield Recipe(f"fused {tile.name}", make)

    def _pair(self, problem: GatedProblem, bucket: int) -> Candidate:
        return pair_candidate(problem, self._product(problem.product, bucket))

    def restore(self, problem: GatedProblem, bucket: int, name: str, identity: str) -> Recipe | None:
        return next((recipe for recipe in self.recipes(problem, bucket) if recipe.name == name), None)

    def rounds(self, problem: GatedProblem, buckets: Sequence[int]) -> Iterator[Round]:
        inputs = proof_inputs(problem.product, max(buckets), self.device)
        reference = pair_candidate(problem, reference_candidate(problem.product))
        trials = RowTrials.of(reference, inputs, problem.output)
        weights = timing_weights(problem.product, self.device)
        for bucket in buckets:
            yield Round(
                bucket, trials.trial(bucket), functools.partial(timing_workload, problem, bucket, weights)
            )


def timing_workload(problem: GatedProblem, bucket: int, weights: Tensors) -> Workload:
    device = weights[0].device
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(bucket, problem.depth, device=device, generator=generator).to(problem.act)
    out = torch.empty(bucket, problem.width, dtype=problem.act, device=device)
    sets = tuple(((x, weight), (out,)) for weight in weights)
    between = short_kernel(bucket, problem.act, device) if bucket <= DEPENDENT_ROWS else None
    return Workload(sets, problem.bytes(bucket), problem.product.operations(bucket), between)
