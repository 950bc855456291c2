"""A product added onto the residual in place, for the prover and the tuner: the library's addition against the pair.

Told to add its product to the very matrix that it writes, the library rounds the product to the activation type and
then the sum, as an adding store does: the two roundings of the clause. (Told to add another matrix it rounds once, and
no proof lets that pass.) The norm behind the product then reads one matrix instead of two and writes one instead of
two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.numerics.gpu import cublaslt
from samebits.numerics.gpu.gemm_candidates import EARLY_ROWS
from samebits.numerics.gpu.gemm_operator import reference_candidate, reference_source, timing_weights
from samebits.numerics.gpu.gemm_problem import GemmProblem, flipped, hashed_matrix, proof_inputs
from samebits.numerics.gpu.gemm_trials import RowTrials
from samebits.numerics.gpu.launch import KernelSource
from samebits.numerics.gpu.norm import add_rms_norm
from samebits.numerics.gpu.operator import Recipe, Round, Workload
from samebits.numerics.gpu.prover import Candidate, Tensors

PAIR = "pair"
LEAST_ROWS = EARLY_ROWS + 1
"""With fewer rows kernels that start early serve, and a norm takes a launch's time whatever it reads."""
WRITTEN = (2,)
"""The residual's place among the inputs."""


@dataclass(frozen=True)
class ResidualProblem:
    """residual[m, n] += sum over k of x[m, k] weight[n, k], the product rounded to act, and then the sum.

    Inputs (x act [rows, depth], weight act [columns, depth], residual act [rows, columns]); the last one is written.
    """

    columns: int
    depth: int
    act: torch.dtype

    @property
    def key(self) -> str:
        return self.product.key

    @property
    def product(self) -> GemmProblem:
        """The product alone."""
        return GemmProblem(self.columns, self.depth, self.act, self.act)

    def bytes(self, rows: int) -> int:
        return self.product.bytes(rows) + rows * self.columns * self.act.itemsize


def residual_problem(product: GemmProblem) -> ResidualProblem | None:
    """The problem of a product that may be added in place: of 16-bit results, without a bias."""
    if product.bias or product.out is not product.act or product.act.itemsize != 2:
        return None
    return ResidualProblem(product.columns, product.depth, product.act)


def pair_candidate(problem: ResidualProblem, product: Candidate) -> Candidate:
    """A product, and then its sum with the residual as the norm's kernel computes it."""

    def run(inputs: Tensors, outputs: Tensors) -> None:
        x, weight, residual = inputs
        between = torch.empty_like(residual)
        product.run((x, weight), (between,))
        ones = torch.ones(problem.columns, dtype=problem.act, device=residual.device)
        residual.copy_(add_rms_norm(between, residual, ones, 0.0)[1])

    return Candidate(PAIR, f"{product.identity} and the norm's sum", run)


def in_place_recipe(problem: ResidualProblem, bucket: int, product: Candidate) -> Recipe | None:
    """The library's algorithm that serves a product, told to add; None where another kernel serves it."""
    if not product.name.startswith("cublaslt "):
        return None
    parts = cublaslt.parts_of(product.name)
    name = f"{product.name} in place"

    def make() -> Candidate:
        algorithm = cublaslt.algorithm_of(product.identity.split()[-1])
        matmul = cublaslt.matmul(problem.product, bucket // parts)

        def run(inputs: Tensors, outputs: Tensors) -> None:
            x, weight, residual = inputs
            for some, total in zip(x.chunk(parts), residual.chunk(parts), strict=True):
                matmul.run(algorithm, some, weight, None, total, onto=True)

        return Candidate(name, f"{product.identity} in place", run)

    return Recipe(name, make)


def residual_inputs(problem: ResidualProblem, rows: int, device: torch.device) -> dict[str, Tensors]:
    """The product's adversarial inputs by case name, with residuals of two kinds in turns: of many exponents, every
    fifth row subnormal, and what nearly cancels the product."""
    cases: dict[str, Tensors] = {}
    reference = reference_candidate(problem.product)
    for number, (name, (x, weight)) in enumerate(proof_inputs(problem.product, rows, device).items()):
        if number % 2:
            residual = cancelling(reference, 220 + number, x, weight)
        else:
            residual = spread_residual(200 + number, rows, problem, device)
        cases[name] = (x, weight, residual)
    return cases


def spread_residual(seed: int, rows: int, problem: ResidualProblem, device: torch.device) -> Tensor:
    """act [rows, columns] of many exponents; every fifth row is so small that half of it is subnormal."""
    wide, small = ((-12, 12), (-20, -11)) if problem.act is torch.float16 else ((-24, 24), (-126, -123))
    residual = hashed_matrix(seed, rows, problem.columns, wide, problem.act, device)
    fifth = residual[2::5]
    fifth.copy_(hashed_matrix(seed + 1, fifth.shape[0], problem.columns, small, problem.act, device))
    fifth[:, ::2] *= 2.0**-4
    return residual


def cancelling(product: Candidate, seed: int, x: Tensor, weight: Tensor) -> Tensor:
    """act [rows, columns]: the negative product, with the lowest bit of a random half of it turned over."""
    found = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    product.run((x, weight), (found,))
    return flipped(seed, found.neg_())


def residual_trials(problem: ResidualProblem, rows: int, device: torch.device) -> RowTrials:
    """The sums of the reference's products on every case, at `rows` rows."""
    reference = pair_candidate(problem, reference_candidate(problem.product))
    return RowTrials.of(reference, residual_inputs(problem, rows, device), lambda bucket: (), WRITTEN)


class ResidualOperator:
    """Products with a residual behind them on one device. `product` gives what serves the product alone."""

    clause = "gemm and residual"

    def __init__(self, device: torch.device, product: Callable[[GemmProblem, int], Candidate]) -> None:
        self.device = device
        self._product = product

    def sources(self, problem: ResidualProblem, buckets: Sequence[int]) -> Iterable[KernelSource]:
        yield reference_source(problem.product)

    def recipes(self, problem: ResidualProblem, bucket: int) -> Iterable[Recipe]:
        product = self._product(problem.product, bucket)
        in_place = in_place_recipe(problem, bucket, product)
        if in_place is not None:
            yield in_place
        yield Recipe(PAIR, functools.partial(pair_candidate, problem, product), fallback=True)

    def restore(self, problem: ResidualProblem, bucket: int, name: str, identity: str) -> Recipe | None:
        return next((recipe for recipe in self.recipes(problem, bucket) if recipe.name == name), None)

    def rounds(self, problem: ResidualProblem, buckets: Sequence[int]) -> Iterator[Round]:
        trials = residual_trials(problem, max(buckets), self.device)
        weights = timing_weights(problem.product, self.device)
        for bucket in buckets:
            work = functools.partial(timing_workload, problem, bucket, weights)
            yield Round(bucket, trials.trial(bucket), work)


def timing_workload(problem: ResidualProblem, bucket: int, weights: Tensors) -> Workload:
    """One sum with each copy of the weights."""
    device = weights[0].device
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(bucket, problem.depth, device=device, generator=generator).to(problem.act)
    residual = torch.zeros(bucket, problem.columns, dtype=problem.act, device=device)
    sets = tuple(((x, weight, residual), ()) for weight in weights)
    return Workload(sets, problem.bytes(bucket), problem.product.operations(bucket))
