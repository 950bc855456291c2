"""Grammars for simulated requests: what may come next follows from the output so far, and says so late."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from random import Random

import numpy as np

from samebits.engine.masks import Mask, Matcher

DELAYS = (0, 0, 0, 1, 2, 5)
"""Turns of the loop until a mask is there."""
FAILING_SUM = 40
"""A grammar raises when the sum of the output's token ids is a multiple of this: in one state of so many."""


@dataclass
class SimulatedGrammars:
    """Implements `engine.masks.MaskSource`. A grammar is a number: the sum of a token id and the ids before it must
    not be divisible by it. Without `delays`, every mask is there at once."""

    vocabulary: int
    delays: Random | None = None
    turn: int = 0
    _pending: list[tuple[int, Future[Mask], int, int]] = field(default_factory=list)
    """(turn in which the mask comes, where it goes, grammar, sum of the output)"""

    def matcher(self, grammar: str) -> Matcher:
        return _SumMatcher(self, int(grammar))

    def next_turn(self) -> None:
        """Hand out the masks that are due."""
        self.turn += 1
        due = [entry for entry in self._pending if entry[0] <= self.turn]
        self._pending = [entry for entry in self._pending if entry[0] > self.turn]
        for _, future, divisor, total in due:
            self._fulfil(future, divisor, total)

    def mask(self, divisor: int, total: int) -> Future[Mask]:
        """The mask after output tokens that sum up to `total`."""
        future: Future[Mask] = Future()
        delay = 0 if self.delays is None else self.delays.choice(DELAYS)
        if delay:
            self._pending.append((self.turn + delay, future, divisor, total))
        else:
            self._fulfil(future, divisor, total)
        return future

    def _fulfil(self, future: Future[Mask], divisor: int, total: int) -> None:
        if total and total % FAILING_SUM == 0:
            future.set_exception(ValueError(f"this grammar ends at {total}"))
            return
        allowed = np.zeros(-(-self.vocabulary // 32) * 32, dtype=np.uint8)
        allowed[: self.vocabulary] = (np.arange(self.vocabulary) + total) % divisor != 0
        future.set_result(np.packbits(allowed, bitorder="little").view(np.int32))


@dataclass
class _SumMatcher:
    grammars: SimulatedGrammars
    divisor: int
    total: int = 0

    def accept(self, token_id: int) -> None:
        self.total += token_id

    def mask(self) -> Future[Mask]:
        return self.grammars.mask(self.divisor, self.total)
