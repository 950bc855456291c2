"""Keeping an engine running: it is started, and started anew when it dies, within bounds."""

from __future__ import annotations

import logging
import time
from asyncio import sleep
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from samebits.engine.async_engine import AsyncEngine
from samebits.errors import SamebitsError
from samebits.server.front import Front, Phase

WINDOW_SECONDS = 600.0
LONGEST_PAUSE_SECONDS = 30.0

log = logging.getLogger("samebits.server")


@dataclass
class RestartBudget:
    """How many more times, and how soon."""

    limit: int
    """restarts in any `WINDOW_SECONDS`"""
    clock: Callable[[], float] = time.monotonic
    _times: deque[float] = field(default_factory=deque)

    def take(self) -> float | None:
        """Seconds to wait before the next restart (0, 1, 4, 16, then 30), or None when there is none left."""
        now = self.clock()
        while self._times and self._times[0] <= now - WINDOW_SECONDS:
            self._times.popleft()
        recent = len(self._times)
        if recent >= self.limit:
            return None
        self._times.append(now)
        return min(4.0 ** (recent - 1), LONGEST_PAUSE_SECONDS) if recent else 0.0


async def keep_running(
    front: Front, make_engine: Callable[[], AsyncEngine], on_ready: Callable[[], None]
) -> None:
    """Run the engine of `front`, and after its death another from `make_engine`. Returns when none is left.

    A first engine that does not start is not tried again: its message says what to mend. Nor is one that comes back
    with another fingerprint: what is on disk changed, and answers would change with it.
    """
    budget = RestartBudget(front.config.engine_restarts)
    fingerprint = ""
    while True:
        error = await _start(front)
        if error is None:
            found = front.engine.facts.fingerprint
            if fingerprint not in ("", found):
                front.phase = Phase.FAILED
                log.error("the engine came back with the fingerprint %s, not %s", found, fingerprint)
                return
            fingerprint = found
            on_ready()
            await front.engine.failed.wait()
        front.phase = Phase.RESTARTING if fingerprint else Phase.FAILED
        front.metrics.forget_engine()
        _log_failure(front, error)
        pause = budget.take() if fingerprint else None
        if pause is None:
            front.phase = Phase.FAILED
            if fingerprint:
                log.error("no restart is left: --engine-restarts %d in 10 minutes", budget.limit)
            return
        log.warning("starting the engine anew%s", f" in {pause:g} s" if pause else "")
        await sleep(pause)
        await front.replace_engine(make_engine())
        front.metrics.engine_restarts += 1


async def _start(front: Front) -> SamebitsError | None:
    try:
        await front.start()
    except SamebitsError as error:
        return error
    return None


def _log_failure(front: Front, error: SamebitsError | None) -> None:
    failure = front.engine.failure
    log.error("%s", error if error is not None else failure.message if failure else "the engine failed")
    if failure is not None and failure.traceback:
        log.error("%s", failure.traceback)
