"""The matrix products of a model: each shape and bucket with what serves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.gpu.bindings import (
    ALONE,
    Bindings,
    Sharing,
    bind_all,
    compile_behind,
    distinct_sources,
    unproven,
)
from samebits.numerics.gpu.device_key import device_key
from samebits.numerics.gpu.gated_operator import GatedOperator, GatedProblem
from samebits.numerics.gpu.gemm_operator import GemmOperator, reference_candidate
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.operator import Operator, P, Wish
from samebits.numerics.gpu.proofs import ProofStore
from samebits.numerics.gpu.prover import Candidate
from samebits.numerics.gpu.residual_operator import (
    LEAST_ROWS,
    PAIR,
    ResidualOperator,
    ResidualProblem,
    residual_problem,
)
from samebits.numerics.gpu.serving import Serving

MOST_FUSED_ROWS = 64
"""Beyond this the product alone and the activation are faster than any fused kernel."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GpuLinear:
    """A weight matrix as it lies in a checkpoint, with its bias."""

    weight: Tensor
    """act [out, in]"""
    bias: Tensor | None
    """act [out]"""
    out: torch.dtype
    """of the products: act, or float32 for logits"""

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def problem(self) -> GemmProblem:
        return GemmProblem(
            self.out_features, self.in_features, self.weight.dtype, self.out, self.bias is not None
        )


def pack_linear(
    weight: Tensor, bias: Tensor | None, device: torch.device, act: torch.dtype, out: torch.dtype
) -> GpuLinear:
    """Take a weight [out, in] and a bias as they are. Raises `NumericsError` for a dtype other than `act`."""
    if weight.dtype != act:
        raise NumericsError(f"weights are {weight.dtype}, but these operators compute in {act}")
    packed = weight.to(device).contiguous()
    return GpuLinear(packed, None if bias is None else bias.to(device, act).contiguous(), out)


def wishes_behind(
    operator: Operator[P],
    seen: Mapping[GemmProblem, P],
    buckets: Callable[[GemmProblem], Sequence[int]],
    serves: Callable[[int], bool],
) -> dict[GemmProblem, Wish[P]]:
    """What is wished of an operator that stands for products and what was seen behind them, by product; at the row
    counts at which it may serve."""
    found = {
        product: Wish(operator, problem, tuple(filter(serves, buckets(product))))
        for product, problem in seen.items()
    }
    return {product: wish for product, wish in found.items() if wish.buckets}


def candidates_behind(
    wishes: Mapping[GemmProblem, Wish[Any]], bindings: Bindings
) -> dict[tuple[GemmProblem, int], Candidate]:
    """What serves them, by product and rows."""
    return {
        (product, bucket): bindings.candidate(wish.operator.clause, wish.problem, bucket)
        for product, wish in wishes.items()
        for bucket in wish.buckets
    }


class Products(Protocol):
    """Computes linear layers."""

    def bind(
        self,
        problems: Sequence[GemmProblem],
        buckets: Callable[[GemmProblem], Sequence[int]],
        folder: Path,
        progress: Progress,
        sharing: Sharing = ALONE,
    ) -> None:
        """Make ready what the problems need at their buckets; proofs are kept in `folder`. Afterwards nothing else
        may run."""

    def compile_ahead(
        self,
        problems: Sequence[GemmProblem],
        buckets: Callable[[GemmProblem], Sequence[int]],
        folder: Path,
    ) -> None:
        """Begin to compile what `bind` will prove, and wait for nothing."""

    def run(self, x: Tensor, linear: GpuLinear, out: Tensor | None = None) -> Tensor:
        """x act [bucket, in] -> `linear.out` [bucket, out features], written to `out` where it is given."""

    def run_gated(self, x: Tensor, linear: GpuLinear) -> Tensor | None:
        """The same with the gated activation behind it, act [bucket, out features / 2]; None: to be done in two."""

    def run_onto(self, x: Tensor, linear: GpuLinear, residual: Tensor) -> bool:
        """Add the product to `residual` act [bucket, out features], both rounded to act, and say True; False: nothing
        was done, for it is to be done in two."""

    @property
    def identities(self) -> frozenset[str]:
        """Binaries and library algorithms that are proven to serve; none where nothing is promised."""


class ProvenProducts:
    """Products of the GEMM clause. Until they are bound, the clause's reference serves; then what was proven and is
    fastest, and a shape or row count that was not bound is refused."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._serving: Serving[GemmProblem] = Serving(GemmOperator.clause, reference_candidate)
        self._gated: dict[GemmProblem, GatedProblem] = {}
        """products that were seen with an activation behind them"""
        self._fused: dict[tuple[GemmProblem, int], Candidate] = {}
        self._added: dict[GemmProblem, ResidualProblem] = {}
        """products that were seen with a residual behind them"""
        self._in_place: dict[tuple[GemmProblem, int], Candidate] = {}

    @property
    def identities(self) -> frozenset[str]:
        others = (*self._fused.values(), *self._in_place.values())
        return self._serving.identities | {candidate.identity for candidate in others}

    @property
    def bound(self) -> dict[tuple[GemmProblem, int], Candidate]:
        """What has served so far, by shape and rows."""
        return self._serving.found

    @property
    def fused(self) -> dict[tuple[GemmProblem, int], Candidate]:
        """What serves products with a gated activation behind them, where it is one kernel."""
        return dict(self._fused)

    @property
    def in_place(self) -> dict[tuple[GemmProblem, int], Candidate]:
        """What adds products to the residual in place, where it is proven."""
        return dict(self._in_place)

    def bind(
        self,
        problems: Sequence[GemmProblem],
        buckets: Callable[[GemmProblem], Sequence[int]],
        folder: Path,
        progress: Progress,
        sharing: Sharing = ALONE,
    ) -> None:
        store = ProofStore(folder, device_key(self._device))
        bindings = bind_all(self._wishes(problems, buckets), store, progress, sharing=sharing)
        self._serving.bind(bindings)
        product = partial(bindings.candidate, GemmOperator.clause)
        fused = self._fused_wishes(GatedOperator(self._device, product), buckets)
        added = self._added_wishes(ResidualOperator(self._device, product), buckets)
        behind = bind_all([*fused.values(), *added.values()], store, progress, sharing=sharing)
        self._fused = candidates_behind(fused, behind)
        in_place = candidates_behind(added, behind).items()
        self._in_place = {place: candidate for place, candidate in in_place if candidate.name != PAIR}

    def compile_ahead(
        self,
        problems: Sequence[GemmProblem],
        buckets: Callable[[GemmProblem], Sequence[int]],
        folder: Path,
    ) -> None:
        store = ProofStore(folder, device_key(self._device))
        gated = GatedOperator(self._device, self._serving.candidate)
        wishes = [*self._wishes(problems, buckets), *self._fused_wishes(gated, buckets).values()]
        compile_behind(distinct_sources(unproven(wishes, store)))

    def _wishes(
        self, problems: Sequence[GemmProblem], buckets: Callable[[GemmProblem], Sequence[int]]
    ) -> list[Wish[Any]]:
        operator = GemmOperator(self._device)
        return [Wish(operator, problem, tuple(buckets(problem))) for problem in dict.fromkeys(problems)]

    def _fused_wishes(
        self, gated: GatedOperator, buckets: Callable[[GemmProblem], Sequence[int]]
    ) -> dict[GemmProblem, Wish[Any]]:
        return wishes_behind(gated, self._gated, buckets, lambda rows: rows <= MOST_FUSED_ROWS)

    def _added_wishes(
        self, added: ResidualOperator, buckets: Callable[[GemmProblem], Sequence[int]]
    ) -> dict[GemmProblem, Wish[Any]]:
        return wishes_behind(added, self._added, buckets, lambda rows: rows >= LEAST_ROWS)

    def run(self, x: Tensor, linear: GpuLinear, out: Tensor | None = None) -> Tensor:
        rows = x.shape[0]
        candidate = self._serving.candidate(linear.problem, rows)
        result = out
        if result is None:
            result = torch.empty((rows, linear.out_features), dtype=linear.out, device=x.device)
        inputs = (x, linear.weight) if linear.bias is None else (x, linear.weight, linear.bias)
        candidate.run(inputs, (result,))
        return result

    def run_gated(self, x: Tensor, linear: GpuLinear) -> Tensor | None:
        problem, rows = linear.problem, x.shape[0]
        if not self._serving.is_bound:
            if linear.bias is None:
                self._gated[problem] = GatedProblem(problem.columns // 2, problem.depth, problem.act)
            return None
        candidate = self._fused.get((problem, rows))
        if candidate is None:
            return None
        result = torch.empty((rows, linear.out_features // 2), dtype=linear.out, device=x.device)
        candidate.run((x, linear.weight), (result,))
        return result

    def run_onto(self, x: Tensor, linear: GpuLinear, residual: Tensor) -> bool:
        product = linear.problem
        if not self._serving.is_bound:
            problem = residual_problem(product)
            if problem is not None:
                self._added[product] = problem
            return False
        candidate = self._in_place.get((product, x.shape[0]))
        if candidate is None:
            return False
        candidate.run((x, linear.weight, residual), ())
        return True


class FreeProducts:
    """cuBLAS as torch calls it: it may split K and choose anew at every row count. Promises nothing."""

    identities: frozenset[str] = frozenset()

    def bind(
        self,
        problems: Sequence[GemmProblem],
        buckets: Callable[[GemmProblem], Sequence[int]],
        folder: Path,
        progress: Progress,
        sharing: Sharing = ALONE,
    ) -> None:
        """There is nothing to prove."""

    def compile_ahead(
        self,
        problems: Sequence[GemmProblem],
        buckets: Callable[[GemmProblem], Sequence[int]],
        folder: Path,
    ) -> None:
        """There is nothing to compile."""

    def run_gated(self, x: Tensor, linear: GpuLinear) -> Tensor | None:
        return None

    def run_onto(self, x: Tensor, linear: GpuLinear, residual: Tensor) -> bool:
        if x.shape[0] < LEAST_ROWS or residual_problem(linear.problem) is None:
            return False
        residual.addmm_(x, linear.weight.t())
        return True

    def run(self, x: Tensor, linear: GpuLinear, out: Tensor | None = None) -> Tensor:
        if linear.out != x.dtype:
            product = torch.mm(x, linear.weight.t(), out_dtype=linear.out)
            return product if out is None else out.copy_(product)
        if linear.bias is not None:
            return torch.addmm(linear.bias, x, linear.weight.t(), out=out)
        return torch.mm(x, linear.weight.t(), out=out)
