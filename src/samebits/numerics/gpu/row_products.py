"""Row-parallel products of `tp-invariant`: the part of the tree of leaves that one rank computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu.bindings import ALONE, Bindings, Sharing, bind_all
from samebits.numerics.gpu.device_key import device_key
from samebits.numerics.gpu.operator import Wish
from samebits.numerics.gpu.proofs import ProofStore
from samebits.numerics.gpu.serving import Serving
from samebits.numerics.gpu.tree_operator import TreeOperator, TreeProblem, reference_candidate
from samebits.numerics.gpu.tree_pushed import PushedOperator, PushedProduct, fitting

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
        self._pushed: dict[tuple[TreeProblem, int], PushedProduct] = {}

    @property
    def identities(self) -> frozenset[str]:
        """Binaries that are proven to serve."""
        return self._serving.identities | {product.digest for product in self._pushed.values()}

    def bind(
        self,
        problems: Sequence[TreeProblem],
        buckets: Sequence[int],
        folder: Path,
        progress: Progress,
        sharing: Sharing = ALONE,
        pushes: Callable[[TreeProblem, int], bool] = lambda problem, rows: False,
    ) -> None:
        """Prove the problems at the buckets, or find their proofs in `folder`. `pushes` tells which of them are better
        written to the ranks that add them."""
        distinct = list(dict.fromkeys(problems))
        wishes = [Wish(TreeOperator(self._device), problem, tuple(buckets)) for problem in distinct]
        store = ProofStore(folder, device_key(self._device))
        self._serving.bind(bind_all(wishes, store, progress, sharing=sharing))
        operator = PushedOperator(self._device)
        pushed = {
            problem: tuple(
                bucket for bucket in buckets if pushes(problem, bucket) and any(fitting(problem, bucket))
            )
            for problem in distinct
        }
        some = [Wish(operator, problem, found) for problem, found in pushed.items() if found]
        self._take_pushed(operator, some, bind_all(some, store, progress, sharing=sharing))

    def _take_pushed(
        self, operator: PushedOperator, wishes: Sequence[Wish[TreeProblem]], bindings: Bindings
    ) -> None:
        """Let what was chosen for the wishes serve."""
        for wish in wishes:
            for bucket in wish.buckets:
                tiles = {tile.name: tile for tile in fitting(wish.problem, bucket)}
                chosen = bindings.candidate(operator.clause, wish.problem, bucket)
                product = PushedProduct(tiles[chosen.name], wish.problem)
                if product.digest != chosen.identity:
                    raise NumericsError(f"{chosen.name} compiled to other code than was proven for it")
                self._pushed[wish.problem, bucket] = product

    def pushed(self, linear: TreeLinear, rows: int) -> PushedProduct | None:
        """What computes a product of so many rows where its sums are to be written to the ranks that add them."""
        return self._pushed.get((linear.problem, rows))

    def run(self, x: Tensor, linear: TreeLinear, out: Tensor | None = None) -> Tensor:
        """x act [bucket, in of this rank] -> the problem's output [bucket, out features], into `out` where given."""
        problem, rows = linear.problem, x.shape[0]
        result = out
        if result is None:
            result = torch.empty((rows, problem.columns), dtype=problem.out, device=x.device)
        self._serving.candidate(problem, rows).run((x, linear.weight), (result,))
        return result
