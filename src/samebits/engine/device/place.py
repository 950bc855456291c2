"""Moving values between host and device without waiting, and knowing when they have arrived.

With a CPU for a device everything arrives at once; the code around it is the same, so that it is tested there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

Outputs = TypeVar("Outputs")


class Moment(Protocol):
    """A point in the device's queue of work."""

    def synchronize(self) -> None:
        """Wait until the device is past it."""


class Past:
    """A moment of a device that never lags behind."""

    def synchronize(self) -> None:
        pass


@dataclass(frozen=True)
class Place:
    """A device, as the host deals with it. All work goes to the device's current stream."""

    device: torch.device

    @property
    def lags(self) -> bool:
        """Whether the device has a queue of its own."""
        return self.device.type == "cuda"

    def moment(self) -> Moment:
        """The end of the work that was queued so far."""
        if not self.lags:
            return Past()
        event = torch.cuda.Event()
        event.record()
        return event

    def host_buffer(self, size: int) -> Tensor:
        """uint8 [size] on the host, from which the device copies by itself."""
        return torch.zeros(size, dtype=torch.uint8, pin_memory=self.lags)

    def send(self, values: Tensor) -> Tensor:
        """A copy on the device of a host tensor, queued. The allocator keeps the pinned original until it is made."""
        if not self.lags:
            return values.clone()
        return values.pin_memory().to(self.device, non_blocking=True)

    def fetch(self, values: Tensor) -> Tensor:
        """A copy on the host that holds its values once a later moment has passed."""
        if not self.lags:
            return values.clone()
        return values.to("cpu", non_blocking=True)


class Capture(Protocol):
    """Turns a piece of device work into something that can be run again, with the same addresses."""

    def __call__(self, work: Callable[[], Outputs]) -> Captured[Outputs]: ...


@dataclass(frozen=True)
class Captured(Generic[Outputs]):
    """Captured work: `replay` runs it again and writes `outputs`, which stay where they are."""

    replay: Callable[[], None]
    outputs: Outputs
    graph: torch.cuda.CUDAGraph | None = None

    def release(self) -> None:
        """Give up what was captured: there is no replay afterwards."""
        if self.graph is not None:
            give_up(self.graph)


def give_up(graph: torch.cuda.CUDAGraph) -> None:
    """Let go of what a graph holds, as far as the device can still do so."""
    with suppress(RuntimeError):
        graph.reset()


class CudaCapture:
    """CUDA graphs that share one memory pool: they run one after another, so what one leaves behind inside is free
    for the next. Outputs are kept apart by being held."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Outputs]) -> Captured[Outputs]:
        work()  # compiles and allocates whatever is made at the first call
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = work()
            graph.instantiate()
        except BaseException:
            give_up(graph)
            raise
        return Captured(graph.replay, outputs, graph)


def rerun(work: Callable[[], Outputs]) -> Captured[Outputs]:
    """A capture for devices that have none: every replay does the work anew and copies what comes of it."""
    outputs = work()

    def replay() -> None:
        for kept, made in zip(_tensors(outputs), _tensors(work()), strict=True):
            kept.copy_(made)

    return Captured(replay, outputs)


def _tensors(outputs: object) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]
