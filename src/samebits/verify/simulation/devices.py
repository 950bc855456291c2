"""Devices for the overlapped loop that run in the host's thread, at a moment that the scenario fixes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class QuickDevice(Executor):
    """Runs what it is given at once."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        _run_into(future, lambda: call(*args, **kwargs))
        return future


class SlowDevice(Executor):
    """Runs what it is given, in order, when somebody asks for the result of it or of something later."""

    def __init__(self) -> None:
        self._queue: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = _LateFuture(self)
        self._queue.append((future, lambda: call(*args, **kwargs)))
        return future

    def run_until(self, future: Future[Any]) -> None:
        """Run what was queued up to `future`."""
        while not future.done():
            _run_into(*self._queue.pop(0))


class _LateFuture(Future[Any]):
    def __init__(self, device: SlowDevice) -> None:
        super().__init__()
        self._device = device

    def result(self, timeout: float | None = None) -> Any:
        self._device.run_until(self)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._device.run_until(self)
        return super().exception(timeout)


def _run_into(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
