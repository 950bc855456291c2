"""The group of ranks that hold one model's shards, as the operators see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Group(Protocol):
    """Ranks 0 .. size - 1, one process each. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape and dtype, in rank order: [size, *shape]. Bytes are copied,
        nothing is added. Raises `RanksLostError` when another rank is gone."""

    def settle(self) -> None:
        """Called before work that is captured in a graph begins, and where it ends: such work is run again in any
        order, and finds the group as it was when it was captured."""

    def abandon(self) -> None:
        """A rank is gone: whatever waits for it must not go on waiting. May be called by another thread."""


@dataclass(frozen=True)
class Solo:
    """A rank without others."""

    rank: int = 0
    size: int = 1

    def all_gather(self, tensor: Tensor) -> Tensor:
        return tensor[None]

    def settle(self) -> None:
        pass

    def abandon(self) -> None:
        pass


SOLO = Solo()
