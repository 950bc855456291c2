"""Faults on purpose: a runner and a page pool that fail when told to, and tokens that break whoever holds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.cache.pages import OutOfPagesError, PagePool
from samebits.engine.runner import Runner
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import Operators
from samebits.verify.simulation.scenario import FaultKind


class InjectedError(RuntimeError):
    """An exception that a scenario asked for."""


@dataclass
class FaultPlan:
    """Which fault strikes in this step, if any. It strikes once."""

    armed: FaultKind | None = None

    def strikes(self, kind: FaultKind) -> bool:
        if self.armed != kind:
            return False
        self.armed = None
        return True


@dataclass(frozen=True)
class SabotagedRunner:
    """A runner behind a fault plan. Besides, a row with the token `breaking` raises and one with the token
    `unsound` has its fault flag set, as a row of a real model with a key that is not finite."""

    inner: Runner
    plan: FaultPlan
    breaking: int
    unsound: int

    @property
    def operators(self) -> Operators:
        return self.inner.operators

    @property
    def vocabulary(self) -> int:
        return self.inner.vocabulary

    def forward(self, batch: RaggedBatch) -> Tensor:
        hidden = self.inner.forward(batch)  # first, so that a lost step has written its slots
        if self.plan.strikes("forward"):
            raise InjectedError("the forward was told to fail")
        if self.plan.strikes("memory"):
            raise MemoryError("the forward was told to find no memory")
        tokens = batch.token_ids.numpy()
        if (tokens == self.breaking).any():
            raise InjectedError(f"token {self.breaking} breaks the step that it is in")
        batch.row_faults.copy_(torch.from_numpy((tokens == self.unsound).astype("uint8")))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.inner.logits(hidden)


class SabotagedPool(PagePool):
    """A page pool behind a fault plan."""

    def __init__(self, total: int, plan: FaultPlan) -> None:
        super().__init__(total)
        self._plan = plan

    def allocate(self, count: int) -> list[int]:
        if count and self._plan.strikes("pages"):
            raise OutOfPagesError("the page pool was told to fail")
        return super().allocate(count)
