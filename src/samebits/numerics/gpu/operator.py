"""What an operator brings to the prover and the tuner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from samebits.numerics.gpu.launch import KernelSource
from samebits.numerics.gpu.prover import Candidate, Case, Tensors


class Problem(Protocol):
    """A shape that an operator is asked for. Frozen and hashable."""

    @property
    def key(self) -> str:
        """A word for the shape, unique within its operator: `6144x4096 bf16 to bf16`."""


P = TypeVar("P", bound=Problem)
Asked = TypeVar("Asked", bound=Problem, contravariant=True)


@dataclass(frozen=True)
class Workload:
    """What the tuner times: sets of inputs and outputs that are run one after another, so that no set is found in
    the cache, and what the work must cost at least."""

    sets: tuple[tuple[Tensors, Tensors], ...]
    bytes: int
    """moved to and from memory by one run, each input read and each output written once"""
    operations: int
    """floating-point operations of one run"""


@dataclass(frozen=True)
class Recipe:
    """A candidate that is not made yet. `make` compiles what is not compiled, and may raise."""

    name: str
    make: Callable[[], Candidate]
    sources: tuple[KernelSource, ...] = ()
    """binaries that it needs, which can be compiled ahead, side by side"""


class Operator(Protocol[Asked]):
    """An operator as the prover and the tuner see it."""

    @property
    def clause(self) -> str:
        """The clause that it keeps, by the contract's name; also its name in the proof store."""

    def reference(self, problem: Asked, bucket: int) -> Recipe:
        """The simple kernel that is the clause on this device."""

    def recipes(self, problem: Asked, bucket: int) -> Iterable[Recipe]:
        """The candidates for a shape and bucket, the likely fastest first."""

    def restore(self, problem: Asked, bucket: int, name: str, identity: str) -> Recipe | None:
        """The candidate that a stored proof names, or None where there is none of that name."""

    def cases(self, problem: Asked, bucket: int) -> Sequence[Case]:
        """Adversarial inputs."""

    def workload(self, problem: Asked, bucket: int) -> Workload:
        """Inputs to time."""


@dataclass(frozen=True)
class Wish(Generic[P]):
    """What an engine will need: one operator at one shape, at some buckets."""

    operator: Operator[P]
    problem: P
    buckets: tuple[int, ...]
