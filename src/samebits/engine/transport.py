"""How the asynchronous front reaches an engine: a small protocol, and the transport to a thread."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.messages import Command, EngineFailed, EngineReady, Message, Shutdown
from samebits.engine.service import BuildEngine, progress_sender, run_service
from samebits.errors import SamebitsError

Deliver = Callable[[list[Message]], None]
IDLE_SECONDS = 1.0
"""how long an engine without work waits for a command before it looks after itself"""


class Transport(Protocol):
    """Two-way traffic with one engine. All methods belong to the event loop that called `start`."""

    def start(self, deliver: Deliver) -> None:
        """Start the engine. `deliver` is called in the loop with every batch of messages: progress, then
        `EngineReady`, then news; an `EngineFailed` is the last one, and comes however the engine dies."""

    def send(self, command: Command) -> None:
        """Queue a command. Never blocks; commands to a dead engine are dropped."""

    async def stop(self) -> None:
        """Shut the engine down and wait until it is gone."""


def describe_failure(error: BaseException) -> EngineFailed:
    """What an exception in an engine says to those outside."""
    if isinstance(error, SamebitsError):
        return EngineFailed(message=str(error), user_error=True)
    text = "".join(traceback.format_exception(error))
    return EngineFailed(message=f"{type(error).__name__}: {error}", traceback=text)


class ThreadTransport:
    """An engine in a thread of this process: for the offline API and for tests."""

    def __init__(self, model: ModelConfig, engine: EngineConfig, build: BuildEngine) -> None:
        self._model = model
        self._engine = engine
        self._build = build
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = asyncio.Event()

    def start(self, deliver: Deliver) -> None:
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                self._run(send)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(self._ended.set)

        def send(messages: list[Message]) -> None:
            # The loop may be closed while a last step runs; nobody listens then.
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver, messages)

        self._thread = threading.Thread(target=run, name="samebits-engine", daemon=True)
        self._thread.start()

    def send(self, command: Command) -> None:
        self._commands.put(command)

    async def stop(self) -> None:
        self._commands.put(Shutdown())
        if self._thread is not None:
            # Not in one of asyncio's threads, of which there are none any more when a process ends.
            await self._ended.wait()
            self._thread.join()

    def take(self, wait: bool) -> list[Command]:
        """The thread's side: every command that has come."""
        commands = []
        if wait:
            with contextlib.suppress(queue.Empty):
                commands.append(self._commands.get(timeout=IDLE_SECONDS))
        while True:
            try:
                commands.append(self._commands.get_nowait())
            except queue.Empty:
                return commands

    def _run(self, send: Deliver) -> None:
        try:
            with closing(self._build(self._model, self._engine, progress_sender(send))) as engine:
                send([EngineReady(facts=engine.facts)])
                run_service(engine, self, send)
        except BaseException as error:  # whatever ends the thread must reach those who wait for it
            send([describe_failure(error)])
