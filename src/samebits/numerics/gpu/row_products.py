"""Row-parallel products of `tp-invariant`: the part of the tree of leaves that one rank computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu.bindings import ALONE, Sharing, bind_all
from samebits.numerics.gpu.device_key import device_key
from samebits.numerics.gpu.operator import Wish
from samebits.numerics.gpu.proofs import ProofStore
from samebits.numerics.gpu.serving import Serving
from samebits.numerics.gpu.tree_operator import TreeOperator, TreeProblem, reference_candidate

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TreeLinear:
    """This rank's part [out, in of this rank] of a weight whose inputs are cut into leaves."""

    weight: Tensor
    problem: TreeProblem

    @property
    def in_features(self) -> int:
        return self.problem.depth

    @property
    def out_features(self) -> int:
        return self.problem.columns


def pack_tree(weight: Tensor, device: torch.device, act: torch.dtype, ranks: int) -> TreeLinear:
    """Take a rank's part of a weight. Raises `NumericsError` where its K cannot be cut into the rank's leaves."""
    if weight.dtype != act:
        raise NumericsError(f"weights are {weight.dtype}, but these operators compute in {act}")
    leaves = leaves_of_rank(ranks)
    columns, depth = weight.shape
    # One rank rounds the root of the tree by itself; several join their parts first.
    problem = TreeProblem(columns, depth, leaves, act, act if ranks == 1 else torch.float32)
    problem.check()
    return TreeLinear(weight.to(device).contiguous(), problem)


def leaves_of_rank(ranks: int) -> int:
    """Leaves of K that each of `ranks` ranks holds. Raises `NumericsError` where they cannot be shared equally."""
    if CONTRACT.leaves % ranks:
        raise NumericsError(
            f"numerics profile tp-invariant cuts K into {CONTRACT.leaves} leaves, which {ranks} ranks cannot share "
            "equally; use a tensor-parallel degree of 1, 2, 4 or 8"
        )
    return CONTRACT.leaves // ranks


class TreeProducts:
    """What `ProvenProducts` is for the plain clause: first the reference serves, then what was bound."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._serving: Serving[TreeProblem] = Serving(TreeOperator.clause, reference_candidate)

    @property
    def identities(self) -> frozenset[str]:
        """Binaries that are proven to serve."""
        return self._serving.identities

    def bind(
        self,
        problems: Sequence[TreeProblem],
        buckets: Sequence[int],
        folder: Path,
        progress: Progress,
        sharing: Sharing = ALONE,
    ) -> None:
        """Prove the problems at the buckets, or find their proofs in `folder`."""
        wishes = [
            Wish(TreeOperator(self._device), problem, tuple(buckets)) for problem in dict.fromkeys(problems)
        ]
        store = ProofStore(folder, device_key(self._device))
        self._serving.bind(bind_all(wishes, store, progress, sharing=sharing))

    def run(self, x: Tensor, linear: TreeLinear, out: Tensor | None = None) -> Tensor:
        """x act [bucket, in of this rank] -> the problem's output [bucket, out features], into `out` where given."""
        problem, rows = linear.problem, x.shape[0]
        result = out
        if result is None:
            result = torch.empty((rows, problem.columns), dtype=problem.out, device=x.device)
        self._serving.candidate(problem, rows).run((x, linear.weight), (result,))
        return result
