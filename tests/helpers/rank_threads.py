"""Ranks as threads of this process, so that a test of many of them starts in no time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
PATIENCE_SECONDS = 60.0


@dataclass
class Meeting:
    """What the ranks share."""

    size: int
    given: list[Tensor | None] = field(init=False)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.given = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=PATIENCE_SECONDS)


@dataclass(frozen=True)
class ThreadGroup:
    """A rank's view of a `Meeting`."""

    rank: int
    meeting: Meeting

    @property
    def size(self) -> int:
        return self.meeting.size

    def all_gather(self, tensor: Tensor) -> Tensor:
        self.meeting.given[self.rank] = tensor.clone()
        self.meeting.barrier.wait()
        gathered = torch.stack([given for given in self.meeting.given if given is not None])
        self.meeting.barrier.wait()
        return gathered

    def settle(self) -> None:
        pass

    def abandon(self) -> None:
        self.meeting.barrier.abort()


def on_ranks(size: int, work: Callable[[ThreadGroup], Result]) -> list[Result]:
    """What `work` returns on each of `size` ranks. An exception on one of them ends all."""
    meeting = Meeting(size)

    def run(rank: int) -> Result:
        try:
            return work(ThreadGroup(rank, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(run, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]
