"""A server process from its first log line to its exit status.

    bind the address -> start the engine's process -> serve -> (SIGTERM) drain -> stop the engine -> exit

The address is taken first, so that a port in use is an error at once. While the model loads, /health answers
503. The first SIGTERM or SIGINT drains: no new requests, running ones get `drain_seconds`; a second one ends them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from samebits.config import EngineConfig, ModelConfig, ServerConfig
from samebits.engine.async_engine import AsyncEngine
from samebits.engine.logs import configure_logging
from samebits.engine.process import BUILD_ENGINE, ProcessTransport
from samebits.errors import ConfigError, SamebitsError
from samebits.server.app import create_app
from samebits.server.front import Front, Phase

LAST_FRAMES_SECONDS = 5
"""how long connections may take to close once their requests have ended"""

log = logging.getLogger("samebits.server")


def serve(model: ModelConfig, engine: EngineConfig, server: ServerConfig, build: str = BUILD_ENGINE) -> int:
    """Serve until told to stop; returns the exit status: 0 after an orderly stop, 1 when the engine failed.

    `build` names the function that makes the engine in its process, as `module:function`. Raises `ConfigError`
    when the address cannot be had.
    """
    configure_logging(server.log_level, ("uvicorn",))
    listener = bind(server.host, server.port)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(model, engine, server, build, listener))
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises `ConfigError` naming it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "the port is taken; choose another with --port" if taken else str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from error
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server with our meaning of signals."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[int], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_signal(sig)


async def _serve(
    model: ModelConfig,
    engine: EngineConfig,
    config: ServerConfig,
    build: str,
    listener: socket.socket,
) -> int:
    front = Front(
        config, AsyncEngine(ProcessTransport(model, engine, build, config.log_level), _log_progress)
    )
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()

    def on_signal(number: int) -> None:
        loop.call_soon_threadsafe(signals.put_nowait, number)

    server = _Server(
        uvicorn.Config(
            create_app(front, model, engine),
            log_config=None,
            access_log=config.log_level == "debug",
            lifespan="off",
            timeout_graceful_shutdown=LAST_FRAMES_SECONDS,
            server_header=False,
        ),
        on_signal,
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    leading = asyncio.create_task(_lead(front, signals, listener))
    try:
        await asyncio.wait({serving, leading}, return_when=asyncio.FIRST_COMPLETED)
        status = leading.result() if leading.done() else 1
        server.should_exit = True
        await serving
    finally:
        leading.cancel()
        await front.engine.shutdown()
    log.info("stopped")
    return status


async def _lead(front: Front, signals: asyncio.Queue[int], listener: socket.socket) -> int:
    """Take the server through its phases; returns the exit status when it is time to stop."""
    stopping = asyncio.create_task(signals.get())
    starting = asyncio.create_task(front.start())
    failing = asyncio.create_task(front.engine.failed.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            log.info("stopped while the model was being loaded")
            return 0
        try:
            starting.result()
        except SamebitsError as error:
            _log_failure(front, error)
            return 1
        _log_ready(front, listener)
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if not failing.done():
            await _drain(front, signals, failing)
            return 0
        front.phase = Phase.FAILED
        _log_failure(front, None)
        return 1
    finally:
        for task in (stopping, starting, failing):
            task.cancel()


async def _drain(front: Front, signals: asyncio.Queue[int], failing: asyncio.Task[bool]) -> None:
    """Take no new requests, let running ones finish for a while, then end them."""
    front.phase = Phase.DRAINING
    log.info("draining: %d requests are running", front.engine.running)
    impatient = asyncio.create_task(signals.get())
    idle = asyncio.create_task(_until_idle(front))
    await asyncio.wait(
        {impatient, idle, failing},
        timeout=front.config.drain_seconds,
        return_when=asyncio.FIRST_COMPLETED,
    )
    impatient.cancel()
    if not idle.done():
        log.warning("ending %d requests before their time", front.engine.running)
        front.engine.abort_all()
        with suppress(TimeoutError):
            await asyncio.wait_for(idle, LAST_FRAMES_SECONDS)


async def _until_idle(front: Front) -> None:
    while front.engine.running:
        await asyncio.sleep(0.02)


def _log_ready(front: Front, listener: socket.socket) -> None:
    facts = front.engine.facts
    host, port = listener.getsockname()[:2]
    promise = "promises bits" if facts.promises_bits else "PROMISES NO BITS: results depend on the batch"
    log.info("model %s, numerics profile %s: %s", front.model_name, facts.profile, promise)
    log.info("fingerprint %s; KV pages for %d tokens", facts.fingerprint, facts.kv_tokens)
    if facts.default_seed is None:
        log.info("requests without a seed get a random one each, reported in the response")
    log.info("ready on http://%s:%d", f"[{host}]" if ":" in host else host, port)


def _log_failure(front: Front, error: SamebitsError | None) -> None:
    failure = front.engine.failure
    log.error("%s", error if error is not None else failure.message if failure else "the engine failed")
    if failure is not None and failure.traceback:
        log.error("%s", failure.traceback)


def _log_progress(stage: str, done: int, total: int) -> None:
    if done == total:
        log.info("%s: done", stage)
    else:
        log.debug("%s: %d of %d", stage, done, total)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
