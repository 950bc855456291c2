"""The loop around an engine: take commands, make one step, send what came of it.

The same loop runs in the engine's own process and in a thread; only the inbox and the way out differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.messages import (
    AbortRequest,
    Command,
    EngineFacts,
    EngineProgress,
    EngineRequest,
    EngineStatus,
    Finish,
    FlushCache,
    FlushReply,
    GetStatus,
    Message,
    ProfileReply,
    RequestEvent,
    Shutdown,
    StartProfile,
    StopProfile,
)
from samebits.engine.profiler import ProfileError, Profiler
from samebits.engine.validate import QueueFullError
from samebits.errors import RequestError


class SteppedEngine(Protocol):
    """What the loop asks of an engine; see `samebits.engine.engine.Engine`."""

    @property
    def facts(self) -> EngineFacts: ...

    def submit(self, request: EngineRequest) -> None: ...

    def abort(self, command: AbortRequest) -> None: ...

    def step(self) -> list[RequestEvent]: ...

    def has_work(self) -> bool: ...

    def status(self, call: int) -> EngineStatus: ...

    def flush_cache(self) -> int: ...

    def close(self) -> None: ...


Progress = Callable[[str, int, int], None]
"""(stage, done, total)"""
BuildEngine = Callable[[ModelConfig, EngineConfig, Progress], SteppedEngine]


class Inbox(Protocol):
    """Where commands come from."""

    def take(self, wait: bool) -> list[Command]:
        """Every command that has come, oldest first; with `wait`, blocks until there is one, or for about a second."""


def run_service(engine: SteppedEngine, inbox: Inbox, send: Callable[[list[Message]], None]) -> None:
    """Serve until a `Shutdown` comes. What an engine raises in a step comes out of here."""
    profiler = Profiler()
    while True:
        out: list[Message] = []
        for command in inbox.take(wait=not engine.has_work()):
            if isinstance(command, Shutdown):
                return
            reply = _obey(engine, command, profiler)
            if reply is not None:
                out.append(reply)
        out.extend(profiler.step(engine.step) if profiler.is_running else engine.step())
        if out:
            send(out)


def progress_sender(send: Callable[[list[Message]], None]) -> Progress:
    """A progress callback that sends `EngineProgress` messages."""

    def report(stage: str, done: int, total: int) -> None:
        send([EngineProgress(stage=stage, done=done, total=total)])

    return report


def _obey(engine: SteppedEngine, command: Command, profiler: Profiler) -> Message | None:
    match command:
        case EngineRequest():
            return _submit(engine, command)
        case AbortRequest():
            engine.abort(command)
        case FlushCache():
            return FlushReply(call=command.call, pages=engine.flush_cache())
        case GetStatus():
            return engine.status(command.call)
        case StartProfile():
            return _profile(command.call, lambda: profiler.start(command.folder))
        case StopProfile():
            return _profile(command.call, profiler.stop)
    return None


def _profile(call: int, act: Callable[[], str]) -> ProfileReply:
    try:
        return ProfileReply(call=call, paths=[act()])
    except ProfileError as error:
        return ProfileReply(call=call, error=str(error))


def _submit(engine: SteppedEngine, request: EngineRequest) -> Message | None:
    """Hand a request over; a refusal is news of that request and of no other."""
    try:
        engine.submit(request)
    except QueueFullError as error:
        finish = Finish(reason="error", message=str(error), refusal="queue_full")
    except RequestError as error:
        finish = Finish(reason="error", message=str(error), refusal="request", field=error.field)
    else:
        return None
    return RequestEvent(rid=request.rid, finish=finish)
