"""The matrix products of a model: each shape and bucket with the candidate that serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.gpu.buckets import BUCKETS
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.prover import Candidate

Bind = Callable[[GemmProblem, Sequence[int]], dict[int, Candidate]]
"""Proves a problem at some buckets and returns what serves each. Raises `NumericsError` where nothing is proven."""


@dataclass(frozen=True)
class GpuLinear:
    """A weight matrix as it lies in a checkpoint, with its bias."""

    weight: Tensor
    """act [out, in]"""
    bias: Tensor | None
    """act [out]"""

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def problem(self, out: torch.dtype) -> GemmProblem:
        return GemmProblem(self.out_features, self.in_features, self.weight.dtype, out, self.bias is not None)


def pack_linear(weight: Tensor, bias: Tensor | None, device: torch.device, act: torch.dtype) -> GpuLinear:
    """Take a weight [out, in] and a bias as they are. Raises `NumericsError` for a dtype other than `act`."""
    if weight.dtype != act:
        raise NumericsError(f"weights are {weight.dtype}, but these operators compute in {act}")
    packed = weight.to(device).contiguous()
    return GpuLinear(packed, None if bias is None else bias.to(device, act).contiguous())


class Products:
    """Products that were bound before they are needed. A shape or row count that was not is refused."""

    def __init__(self, bind: Bind) -> None:
        self._bind = bind
        self._bound: dict[tuple[GemmProblem, int], Candidate] = {}

    def bind(self, problem: GemmProblem, buckets: Sequence[int]) -> None:
        """Prove and choose what serves a problem at these buckets, where that was not done yet."""
        missing = [bucket for bucket in buckets if (problem, bucket) not in self._bound]
        if missing:
            for bucket, candidate in self._bind(problem, missing).items():
                self._bound[problem, bucket] = candidate

    def run(self, x: Tensor, linear: GpuLinear, out: torch.dtype) -> Tensor:
        """x act [bucket, in] -> `out` [bucket, out features]."""
        problem, rows = linear.problem(out), x.shape[0]
        candidate = self._bound.get((problem, rows))
        if candidate is None:
            candidate = self._late(problem, rows)
        result = torch.empty((rows, linear.out_features), dtype=out, device=x.device)
        inputs = (x, linear.weight) if linear.bias is None else (x, linear.weight, linear.bias)
        candidate.run(inputs, (result,))
        return result

    def _late(self, problem: GemmProblem, rows: int) -> Candidate:
        """Bind at the first call, which only set-up makes."""
        if rows not in BUCKETS:
            raise NumericsError(f"no product is proven for {problem.key} at {rows} rows")
        self.bind(problem, [rows])
        return self._bound[problem, rows]
