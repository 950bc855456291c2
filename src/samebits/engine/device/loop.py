"""The loop over a device: the host queues the next step before it reads the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from samebits.engine.device.launched import Launched
from samebits.engine.loops import Prepare, StepFailure
from samebits.engine.ranks import RankProcesses
from samebits.engine.step import ChunkResult, PreparedStep
from samebits.errors import DeviceLostError


class Launcher(Protocol):
    """Queues steps; see `DeviceRunner.launch`."""

    def launch(self, step: PreparedStep, before: Mapping[str, int]) -> Launched: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Broken:
    """A step that raised while it was queued."""

    step: PreparedStep
    cause: Exception


class DeviceLoop:
    """Prepare step i + 1 and queue it while the device computes step i, then read what step i did.

    Sampled tokens stay on the device, where step i + 1 takes them. The host waits for nothing but the end of step i.
    With `ahead` off, every step is read before the next one is prepared. `ranks` are the processes that share the
    model: what goes wrong with one of them, or while they are out of step, ends the engine.
    """

    def __init__(self, runner: Launcher, ahead: bool = True, ranks: RankProcesses | None = None) -> None:
        self.runner = runner
        self._ahead = ahead
        self._ranks = ranks
        self._tokens: Mapping[str, int] = {}
        """where the device keeps the tokens of the step that was queued last, by rid"""
        self._running: Launched | Broken | None = None

    @property
    def busy(self) -> bool:
        return self._running is not None

    def turn(self, prepare: Prepare) -> Sequence[ChunkResult]:
        if isinstance(self._running, Broken):
            raise self._lost(self._running)
        step = prepare()
        before: Launched | Broken | None = self._running
        self._running = None
        if step is not None:
            self._running = self._launch(step)
        if not self._ahead:
            before, self._running = self._running, None
            self._tokens = {}
        if before is None:
            return []
        if isinstance(before, Broken):
            raise self._lost(before)
        try:
            results = before.read()
        except Exception as error:
            raise self._lost(Broken(before.step, error)) from error
        if self._ranks is not None:
            self._ranks.check()  # what was computed while a rank died is worthless
        return results

    def close(self) -> None:
        try:
            if isinstance(self._running, Launched):
                self._running.wait()
        finally:
            self.runner.close()

    def _launch(self, step: PreparedStep) -> Launched | Broken:
        tokens, self._tokens = self._tokens, {}
        try:
            launched = self.runner.launch(step, tokens)
        except Exception as error:
            return Broken(step, error)
        self._tokens = launched.tokens
        return launched

    def _lost(self, broken: Broken) -> StepFailure:
        """Forget the broken step and the one queued after it, which has no sound tokens to begin with. Raises
        `DeviceLostError` or `RanksLostError` where no later step could run: the process has to be started anew."""
        if self._ranks is not None:
            raise self._ranks.explanation(broken.cause) from broken.cause
        if isinstance(broken.cause, torch.AcceleratorError):
            raise DeviceLostError(f"the device failed: {broken.cause}") from broken.cause
        steps = [broken.step]
        if self._running is not None and self._running is not broken:
            steps.append(self._running.step)
        self._running = None
        self._tokens = {}
        failure = StepFailure(steps, broken.cause)
        failure.__cause__ = broken.cause
        return failure
