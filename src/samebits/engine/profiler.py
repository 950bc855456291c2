"""A trace of the engine's process by torch's profiler, begun and ended between two steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from samebits.errors import SamebitsError

MOST_STEPS = 5000
"""after so many the recording ends by itself: a forgotten one would fill the memory"""
Result = TypeVar("Result")


class ProfileError(SamebitsError):
    """There is a recording already, or none; the message says which."""


class Profiler:
    """Records at most one trace at a time. Belongs to the thread of the engine's loop; sees all threads."""

    def __init__(self, most_steps: int = MOST_STEPS) -> None:
        self._most_steps = most_steps
        self._recording: Any = None
        self._steps = 0
        self._number = 0
        self._path = Path()
        self._ended: str | ProfileError | None = None
        """the file of a recording that ended by itself, or why there is none, until it is asked for"""

    @property
    def is_running(self) -> bool:
        return self._recording is not None

    def start(self, folder: str) -> str:
        """Begin; returns the file that the trace will be in. Raises `ProfileError`."""
        if self.is_running or self._ended is not None:
            raise ProfileError("a profile is being recorded already: /stop_profile ends it")
        name = time.strftime("samebits-%Y%m%d-%H%M%S")
        self._number += 1  # several may begin in one second
        self._path = Path(folder) / f"{name}-{os.getpid()}-{self._number}.trace.json.gz"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(exist_ok=False)
        except OSError as error:
            raise ProfileError(f"the trace {self._path} cannot be written: {error.strerror}") from error
        self._steps = 0
        self._recording = _recording()
        self._recording.start()
        return str(self._path)

    def stop(self) -> str:
        """End and write; returns the file. Raises `ProfileError`, also where it could not be written."""
        if self._ended is not None:
            ended, self._ended = self._ended, None
            if isinstance(ended, ProfileError):
                raise ended
            return ended
        if not self.is_running:
            raise ProfileError("no profile is being recorded: /start_profile begins one")
        return self._write()

    def step(self, make: Callable[[], Result]) -> Result:
        """Run a turn of the engine's loop as a span of the trace."""
        from torch.profiler import record_function

        with record_function("samebits step"):
            result = make()
        self._steps += 1
        if self._steps >= self._most_steps:
            try:
                self._ended = self._write()
            except ProfileError as error:
                self._ended = error
        return result

    def _write(self) -> str:
        recording, self._recording = self._recording, None
        try:
            recording.stop()
            recording.export_chrome_trace(str(self._path))
        except Exception as error:  # a full disk, a folder that is gone: no reason for requests to end
            raise ProfileError(f"the trace {self._path} could not be written: {error}") from error
        return str(self._path)


def _recording() -> Any:
    import torch
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # Steps run in a thread of their own, which the profiler sees only with this.
    every_thread = _ExperimentalConfig(profile_all_threads=True)
    return profile(activities=activities, experimental_config=every_thread)
