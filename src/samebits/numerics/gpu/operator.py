"""What an operator brings to the prover and the tuner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from samebits.numerics.gpu.launch import KernelSource
from samebits.numerics.gpu.prover import Candidate, Tensors, Trial


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
    between: Callable[[], None] | None = None
    """a short kernel that stands ahead of each run, as one does in a model: what overlaps with it counts"""
    lasting: bool = False
    """whether work of its kind fills the card for seconds, as the largest steps do while prompts wait"""


@dataclass(frozen=True)
class Recipe:
    """A candidate that is not made yet. `make` compiles what is not compiled, and may raise."""

    name: str
    make: Callable[[], Candidate]
    fallback: bool = False
    """tried only where nothing else is proven: it fits everything and is never the fastest"""


@dataclass(frozen=True)
class Round:
    """What one bucket is proven and timed with."""

    bucket: int
    trial: Trial
    workload: Callable[[], Workload]


class Operator(Protocol[Asked]):
    """An operator as the prover and the tuner see it."""

    @property
    def clause(self) -> str:
        """The clause that it keeps, by the contract's name; also its name in the proof store."""

    def sources(self, problem: Asked, buckets: Sequence[int]) -> Iterable[KernelSource]:
        """Every binary that may be wanted, the reference's among them, so that they are compiled side by side."""

    def recipes(self, problem: Asked, bucket: int) -> Iterable[Recipe]:
        """The candidates for a shape and bucket, the likely fastest first."""

    def restore(self, problem: Asked, bucket: int, name: str, identity: str) -> Recipe | None:
        """The candidate that a stored proof names, or None where there is none of that name."""

    def rounds(self, problem: Asked, buckets: Sequence[int]) -> Iterator[Round]:
        """One round a bucket. What the rounds share lives as long as the iterator."""


@dataclass(frozen=True)
class Wish(Generic[P]):
    """What an engine will need: one operator at one shape, at some buckets."""

    operator: Operator[P]
    problem: P
    buckets: tuple[int, ...]
