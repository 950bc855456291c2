"""A benchmark's engine in a process of its own: a process can hold the ranks of one model only."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection
from typing import Any

from samebits.config import EngineConfig, ModelConfig
from samebits.errors import EngineError

CLOSE_SECONDS = 8.0


class EngineProcess:
    """Answers what a `BenchEngine` answers. Raises `EngineError` with the traceback of what went wrong there. The
    process is started at once and imports what it needs; the engine is built by `open`."""

    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # No daemon, for it has processes of its own.
        self._process = context.Process(target=_serve, args=(model, engine, theirs))
        self._process.start()
        theirs.close()
        self.start_seconds = 0.0
        self.stages: dict[str, float] = {}
        """seconds of the start by stage"""

    def open(self) -> None:
        """Build the engine."""
        self.start_seconds, self.stages = self._ask("open")

    def decode_together(self, count: int, prompt_tokens: int) -> None:
        self._ask("decode_together", count, prompt_tokens)

    def prefill(self, count: int, prompt_tokens: int, step_tokens: int) -> dict[str, float]:
        found: dict[str, float] = self._ask("prefill", count, prompt_tokens, step_tokens)
        return found

    def prefill_kernels(self, count: int, prompt_tokens: int, step_tokens: int) -> dict[str, float]:
        found: dict[str, float] = self._ask("prefill_kernels", count, prompt_tokens, step_tokens)
        return found

    def timed_steps(self, steps: int) -> dict[str, float]:
        found: dict[str, float] = self._ask("timed_steps", steps)
        return found

    def kernel_milliseconds(self, steps: int) -> dict[str, float]:
        found: dict[str, float] = self._ask("kernel_milliseconds", steps)
        return found

    def context(self) -> int:
        return int(self._ask("context"))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the process is gone
            self._pipe.send(None)
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()

    def _ask(self, name: str, *arguments: int) -> Any:
        self._pipe.send((name, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            fine, answer = self._pipe.recv()
        except EOFError:
            raise EngineError("the benchmark's engine process ended") from None
        if not fine:
            self._process.kill()
            raise EngineError(answer)
        return answer


def _serve(model: ModelConfig, engine: EngineConfig, pipe: Connection) -> None:
    """Main function of the process: an engine, and what is asked of it."""
    from samebits.bench.device_engine import open_engine

    try:
        if pipe.recv() is None:
            return
        opened = open_engine(model, engine, lambda line: None)
        pipe.send((True, (opened.start_seconds, opened.stages)))
        while (asked := pipe.recv()) is not None:
            name, arguments = asked
            pipe.send((True, getattr(opened, name)(*arguments)))
        opened.close()
    except EOFError:
        pass
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    # The ranks are gone: there is nothing to take leave of.
    os._exit(0)
