"""The two ways to drive steps: one after another, or with the host a step ahead of the device.

Both give the same bits; the simple one is there to be read, and to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Protocol

from samebits.engine.runner import Runner
from samebits.engine.step import ChunkResult, PreparedStep, execute_step, sampled_tokens
from samebits.errors import RanksLostError

Prepare = Callable[[], PreparedStep | None]


class StepFailure(Exception):
    """A step raised: nothing of it, nor of the step launched after it, is to be kept."""

    def __init__(self, steps: Sequence[PreparedStep], cause: BaseException) -> None:
        super().__init__(f"a step failed: {cause}")
        self.steps = steps
        self.cause = cause


class Loop(Protocol):
    """Turns prepared steps into results."""

    @property
    def busy(self) -> bool:
        """Whether a step is on its way whose results are still to come."""

    def turn(self, prepare: Prepare) -> Sequence[ChunkResult]:
        """Ask for a step, get it going, and return the results that are due (none, perhaps). Raises `StepFailure`,
        or `RanksLostError` after which nothing can run."""

    def close(self) -> None:
        """Let go of threads."""


class SimpleLoop:
    """Prepare a step, run it, return what it did."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @property
    def busy(self) -> bool:
        return False

    def turn(self, prepare: Prepare) -> Sequence[ChunkResult]:
        step = prepare()
        if step is None:
            return []
        try:
            return execute_step(self._runner, step, unread={})
        except RanksLostError:
            raise
        except Exception as error:
            raise StepFailure([step], error) from error

    def close(self) -> None:
        pass


class OverlappedLoop:
    """Prepare step i + 1 and queue it while the device runs step i, then return what step i did.

    Sampled tokens stay on the device's side (`_device_tokens`): step i + 1 takes them from there, the host reads
    them one turn late. What a late reading makes void (a request that ended, was aborted or preempted) runs
    to its end unread. `device` runs what it is given one after another; by default in a thread of its own.
    """

    def __init__(self, runner: Runner, device: Executor | None = None) -> None:
        self._runner = runner
        self._device = device or ThreadPoolExecutor(max_workers=1, thread_name_prefix="samebits-device")
        self._device_tokens: dict[str, int] = {}
        self._running: tuple[PreparedStep, Future[list[ChunkResult]]] | None = None

    @property
    def busy(self) -> bool:
        return self._running is not None

    def turn(self, prepare: Prepare) -> Sequence[ChunkResult]:
        step = prepare()
        before = self._running
        self._running = None
        if step is not None:
            self._running = (step, self._device.submit(self._execute, step))
        if before is None:
            return []
        try:
            return before[1].result()
        except RanksLostError:
            raise
        except Exception as error:
            lost = [before[0]]
            if self._running is not None:
                self._running[1].exception()  # it has no sound tokens to begin with; wait until it is over
                lost.append(self._running[0])
                self._running = None
            raise StepFailure(lost, error) from error

    def close(self) -> None:
        self._device.shutdown(wait=True, cancel_futures=True)

    def _execute(self, step: PreparedStep) -> list[ChunkResult]:
        tokens, self._device_tokens = self._device_tokens, {}
        results = execute_step(self._runner, step, tokens)
        self._device_tokens = sampled_tokens(results)
        return results


LOOPS: dict[str, type[SimpleLoop] | type[OverlappedLoop]] = {
    "simple": SimpleLoop,
    "overlapped": OverlappedLoop,
}
