"""What serves an operator of many shapes: the reference until kernels are bound, then what was bound alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from samebits.numerics.gpu.bindings import Bindings
from samebits.numerics.gpu.operator import P
from samebits.numerics.gpu.prover import Candidate


class Serving(Generic[P]):
    """The candidates of one clause, by shape and bucket. `reference` makes the clause's own for a shape."""

    def __init__(self, clause: str, reference: Callable[[P], Candidate]) -> None:
        self._clause = clause
        self._reference = reference
        self._bindings: Bindings | None = None
        self._references: dict[P, Candidate] = {}
        self._found: dict[tuple[P, int], Candidate] = {}

    @property
    def is_bound(self) -> bool:
        return self._bindings is not None

    @property
    def identities(self) -> frozenset[str]:
        """Binaries and library algorithms that are proven to serve."""
        return frozenset() if self._bindings is None else self._bindings.identities

    @property
    def found(self) -> dict[tuple[P, int], Candidate]:
        """What has served since kernels were bound."""
        return dict(self._found)

    def bind(self, bindings: Bindings) -> None:
        """Let nothing but these serve from here on."""
        self._bindings = bindings
        self._references.clear()

    def candidate(self, problem: P, bucket: int) -> Candidate:
        """What serves. Raises `NumericsError` where kernels are bound and none is for this."""
        if self._bindings is None:
            if problem not in self._references:
                self._references[problem] = self._reference(problem)
            return self._references[problem]
        found = self._found.get((problem, bucket))
        if found is None:
            found = self._found[problem, bucket] = self._bindings.candidate(self._clause, problem, bucket)
        return found
