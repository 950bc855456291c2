"""A server process from its first log line to its exit status.

    bind the address -> start the engine's process -> serve -> (SIGTERM) drain -> stop the engine -> exit

The address is taken first, so that a port in use is an error at once. While the model loads, /health answers
503. An engine that dies is started anew (`supervise.py`). The first SIGTERM or SIGINT drains: no new requests,
running ones get `drain_seconds`; a second one ends them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType

import uvicorn

from samebits.config import EngineConfig, ModelConfig, ServerConfig
from samebits.engine.async_engine import AsyncEngine
from samebits.engine.garbage import settle
from samebits.engine.logs import configure_logging
from samebits.engine.process import BUILD_ENGINE, ProcessTransport
from samebits.engine.replicas import ReplicaTransport
from samebits.engine.threads import default_threads
from samebits.engine.transport import Transport
from samebits.errors import ConfigError
from samebits.server.app import create_app
from samebits.server.front import Front, Phase, most_samples
from samebits.server.start_log import StartLog
from samebits.server.supervise import keep_running

LAST_FRAMES_SECONDS = 5
"""how long connections may take to close once their requests have ended"""

log = logging.getLogger("samebits.server")


def serve(
    model: ModelConfig,
    engine: EngineConfig,
    server: ServerConfig,
    build: str = BUILD_ENGINE,
    notes: Sequence[str] = (),
) -> int:
    """Serve until told to stop; returns the exit status: 0 after an orderly stop, 1 when the engine failed.

    `build` names the function that makes the engine in its process, as `module:function`; `notes` are logged
    first. Raises `ConfigError` when the address cannot be had, or for a setting of the server that makes no sense.
    """
    if engine.data_parallel < 1:
        raise ConfigError(f"--data-parallel must be at least 1, got {engine.data_parallel}")
    configure_logging(server.log_level, ("uvicorn",), server.log_format)
    for note in notes:
        log.info("%s", note)
    listener = bind(server.host, server.port)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(model, engine, server, build, listener))
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises `ConfigError` naming it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only where the socket names its protocol. Otherwise the end of an answer waits
    # for the client to acknowledge its beginning, 40 ms on Linux.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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


def _transport(model: ModelConfig, engine: EngineConfig, config: ServerConfig, build: str) -> Transport:
    """A process for the engine, or one for each replica."""
    count = engine.data_parallel
    if count > 1 and not engine.threads:
        engine = replace(engine, threads=default_threads(count * model.tensor_parallel))
    replicas = [
        ProcessTransport(model, engine, build, config.log_level, config.log_format, replica)
        for replica in range(count)
    ]
    return replicas[0] if count == 1 else ReplicaTransport(replicas)


async def _serve(
    model: ModelConfig,
    engine: EngineConfig,
    config: ServerConfig,
    build: str,
    listener: socket.socket,
) -> int:
    def make_engine() -> AsyncEngine:
        log.info("starting the engine: model %s, numerics profile %s", model.model, model.numerics)
        return AsyncEngine(_transport(model, engine, config, build), StartLog())

    front = Front(config, make_engine(), most_samples(engine))
    app = create_app(front, model, engine)
    _warn_if_open(config)
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()

    def on_signal(number: int) -> None:
        loop.call_soon_threadsafe(signals.put_nowait, number)

    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=LAST_FRAMES_SECONDS,
            server_header=False,
            proxy_headers=False,  # nobody asks who called
        ),
        on_signal,
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    leading = asyncio.create_task(_lead(front, make_engine, signals, listener))
    try:
        await asyncio.wait({serving, leading}, return_when=asyncio.FIRST_COMPLETED)
        status = leading.result() if leading.done() else 1
        server.should_exit = True
        await serving
    finally:
        leading.cancel()
        await front.engine.shutdown()
        if front.tracing is not None:
            await asyncio.to_thread(front.tracing.close)
    log.info("stopped")
    return status


async def _lead(
    front: Front,
    make_engine: Callable[[], AsyncEngine],
    signals: asyncio.Queue[int],
    listener: socket.socket,
) -> int:
    """Take the server through its phases; returns the exit status when it is time to stop."""
    stopping = asyncio.create_task(signals.get())
    keeping = asyncio.create_task(keep_running(front, make_engine, lambda: _log_ready(front, listener)))
    try:
        await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
            return 1
    finally:
        stopping.cancel()
        keeping.cancel()
        await asyncio.wait({keeping})
    if front.phase is Phase.READY:
        await _drain(front, signals)
    else:
        log.info("stopped while the model was being loaded")
    return 0


async def _drain(front: Front, signals: asyncio.Queue[int]) -> None:
    """Take no new requests, let running ones finish for a while, then end them."""
    front.phase = Phase.DRAINING
    log.info("draining: %d requests are running", front.engine.running)
    impatient = asyncio.create_task(signals.get())
    idle = asyncio.create_task(_until_idle(front))
    failing = asyncio.create_task(front.engine.failed.wait())
    await asyncio.wait(
        {impatient, idle, failing},
        timeout=front.config.drain_seconds,
        return_when=asyncio.FIRST_COMPLETED,
    )
    impatient.cancel()
    failing.cancel()
    if not idle.done():
        log.warning("ending %d requests before their time", front.engine.running)
        front.engine.abort_all()
        with suppress(TimeoutError):
            await asyncio.wait_for(idle, LAST_FRAMES_SECONDS)


async def _until_idle(front: Front) -> None:
    while front.engine.running:
        await asyncio.sleep(0.02)


def _log_ready(front: Front, listener: socket.socket) -> None:
    settle()  # the collector's looks took a third of the server's time
    facts = front.engine.facts
    host, port = listener.getsockname()[:2]
    promise = "promises bits" if facts.promises_bits else "PROMISES NO BITS: results depend on the batch"
    log.info("model %s, numerics profile %s: %s", front.model_name, facts.profile, promise)
    log.info("fingerprint %s; KV pages for %d tokens", facts.fingerprint, facts.kv_tokens)
    if facts.default_seed is None:
        log.info("requests without a seed get a random one each, reported in the response")
    log.info("ready on http://%s:%d", f"[{host}]" if ":" in host else host, port)


def _warn_if_open(config: ServerConfig) -> None:
    is_local = config.host == "localhost" or config.host.startswith("127.") or config.host == "::1"
    if not is_local and not (config.api_key or config.api_key_file):
        log.warning("whoever reaches %s may use this server: there is no --api-key", config.host)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
