"""What the log says while an engine starts: a first start compiles kernels for half a minute or more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

PAUSE_SECONDS = 2.0
"""between two lines of one stage; a stage that takes less says nothing"""

log = logging.getLogger("samebits.server")


class StartLog:
    """A progress callback that logs each stage that lasts, every few seconds, and its end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: dict[str, float] = {}
        """when each stage under way began; replicas may be in several"""
        self._spoke = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if not self._began:
            self._spoke = now
        began = self._began.setdefault(stage, now)
        if done >= total:
            del self._began[stage]
            level = logging.INFO if now - began >= PAUSE_SECONDS else logging.DEBUG
            log.log(level, "%s: done in %.1f s", stage, now - began)
        elif now - self._spoke >= PAUSE_SECONDS:
            self._spoke = now
            log.info("%s: %d of %d", stage, done, total)
        else:
            log.debug("%s: %d of %d", stage, done, total)
