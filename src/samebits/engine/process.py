"""The engine in a process of its own, with ZeroMQ and msgpack between.

The parent owns both addresses. The child ignores SIGINT, SIGTERM and SIGHUP, because a terminal or a supervisor sends
them to the whole group and only the parent may decide when running requests end; it leaves when told to, and
when its parent is gone. The parent removes the folder of the sockets when the child has ended; the child does
when its parent was killed, and the next start when both were (`folders.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess

import msgspec
import zmq

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.devices import take_devices
from samebits.engine.folders import OwnedFolder
from samebits.engine.garbage import import_for_good, settle
from samebits.engine.logs import configure_logging
from samebits.engine.messages import (
    Command,
    EngineFailed,
    EngineReady,
    Message,
    News,
    Shutdown,
    make_news,
)
from samebits.engine.service import BuildEngine, progress_sender, run_service
from samebits.engine.transport import Deliver, describe_failure

BUILD_ENGINE = "samebits.engine.build:build_engine"
IDLE_MILLISECONDS = 1000
"""how long an engine without work waits for a command before it looks after itself and its parent"""
STOP_SECONDS = 5.0
LONGEST_TEMPORARY_PATH = 70
"""with our part behind it, a socket's address must stay under about 100 characters"""
MOST_BATCHES = 64
"""of messages, read in one turn of the event loop"""
LAST_WORDS_SECONDS = 0.2
"""how long a dead child's last messages may take to arrive"""


class ProcessTransport:
    """An engine in a spawned process. `build` names its `BuildEngine` as `module:function`; it goes by name so
    that this process need not import what only an engine needs."""

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        build: str = BUILD_ENGINE,
        log_level: str = "warning",
        log_format: str = "text",
        replica: int = 0,
    ) -> None:
        self._settings = (model, engine, build, log_level, log_format, replica)
        self._process: SpawnProcess | None = None
        self._folder: OwnedFolder | None = None
        self._ready = False
        self._failed = False
        self._stopping = False
        self._outbox: list[Command] = []
        """commands of this turn of the event loop, sent together"""

    @property
    def process_id(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self, deliver: Deliver) -> None:
        self._context = zmq.Context()
        self._events = self._context.socket(zmq.PULL)
        self._commands = self._context.socket(zmq.PUSH)
        for socket in (self._events, self._commands):
            socket.set_hwm(0)  # the engine never waits for a slow reader, nor the reader for the engine
            socket.setsockopt(zmq.LINGER, 0)
        addresses = self._bind()
        self._process = multiprocessing.get_context("spawn").Process(
            target=engine_process,
            args=(*self._settings, *addresses, os.getpid()),
            name="samebits-engine",
            daemon=self._settings[0].tensor_parallel == 1,  # a daemon may not start the other ranks
        )
        try:
            with _signals_held():
                self._process.start()
        except BaseException:
            self._close_sockets()
            self._process = None
            raise
        self._encoder = msgspec.msgpack.Encoder()
        loop = asyncio.get_running_loop()
        self._dead = asyncio.Event()
        loop.add_reader(self._process.sentinel, self._notice_death)
        self._deliver = deliver
        self._decoder = msgspec.msgpack.Decoder(News)
        loop.add_reader(self._events.fileno(), self._receive)
        self._reporting = loop.create_task(self._report_death())

    def send(self, command: Command) -> None:
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(command)

    def _flush(self) -> None:
        commands, self._outbox = self._outbox, []
        # A dead child has no queue to fill; `_report_death` tells those who wait.
        if commands and self._process is not None:
            with contextlib.suppress(zmq.Again):
                self._commands.send(self._encoder.encode(commands), zmq.NOBLOCK)

    async def stop(self) -> None:
        process = self._process
        if process is None:
            return
        self._stopping = True
        self._outbox.append(Shutdown())
        self._flush()
        try:  # a child that is still loading hears no commands
            await asyncio.wait_for(self._dead.wait(), STOP_SECONDS if self._ready else 0)
        except TimeoutError:
            process.kill()
            await self._dead.wait()
        self._reporting.cancel()
        await asyncio.gather(self._reporting, return_exceptions=True)
        process.join()
        asyncio.get_running_loop().remove_reader(self._events.fileno())
        self._close_sockets()
        self._process = None

    def _close_sockets(self) -> None:
        self._commands.close()
        self._events.close()
        self._context.term()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _bind(self) -> tuple[str, str]:
        """Bind both sockets; returns (commands, events) addresses."""
        if zmq.has("ipc") and len(tempfile.gettempdir()) < LONGEST_TEMPORARY_PATH:
            self._folder = OwnedFolder()
            path = self._folder.path
            addresses = (f"ipc://{path}/commands", f"ipc://{path}/events")
            self._commands.bind(addresses[0])
            self._events.bind(addresses[1])
            return addresses
        ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (self._commands, self._events)]
        return f"tcp://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}"

    def _notice_death(self) -> None:
        assert self._process is not None
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._dead.set()

    def _receive(self) -> None:
        """Take all that has come, and only then let the readers run: a server that lags behind gets more tokens at
        a time, and not more turns. The descriptor speaks up once, so it is read until there is nothing."""
        if self._process is None:
            return
        messages: list[Message] = []
        for _ in range(MOST_BATCHES):
            try:
                news = self._decoder.decode(self._events.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            messages += news.events
            messages += news.others
            for other in news.others:
                self._ready = self._ready or isinstance(other, EngineReady)
                self._failed = self._failed or isinstance(other, EngineFailed)
        else:
            asyncio.get_running_loop().call_soon(self._receive)
        if messages:
            self._deliver(messages)

    async def _report_death(self) -> None:
        await self._dead.wait()
        await asyncio.sleep(LAST_WORDS_SECONDS)
        if not self._failed and not self._stopping:
            assert self._process is not None
            self._process.join()
            self._deliver([EngineFailed(message=_describe_exit(self._process.exitcode))])


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Around the start of a child: it inherits the mask, and so does not die of a Ctrl-C before it ignores it."""
    resource_tracker.ensure_running()  # which would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        reason = f"killed by {signal.Signals(-code).name}"
        hint = "; the system may have been out of memory" if code == -signal.SIGKILL else ""
        return f"the engine process was {reason}{hint}"
    return f"the engine process ended unexpectedly with exit status {code}"


def _take_devices(model: ModelConfig, engine: EngineConfig, replica: int) -> None:
    """Leave the GPUs of other replicas alone."""
    import torch  # the parent, which shares this module, does without

    take_devices(model, engine, replica, torch.cuda.device_count)


class _SocketInbox:
    """Commands from the parent's socket."""

    def __init__(self, socket: zmq.Socket[bytes], parent: int) -> None:
        self._socket = socket
        self._parent = parent
        self._decoder = msgspec.msgpack.Decoder(list[Command])

    def take(self, wait: bool) -> list[Command]:
        timeout = IDLE_MILLISECONDS if wait else 0
        if not self._socket.poll(timeout):
            if os.getppid() != self._parent:
                return [Shutdown()]
            return []
        commands: list[Command] = []
        while True:
            try:
                commands += self._decoder.decode(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return commands


def engine_process(
    model: ModelConfig,
    engine: EngineConfig,
    build: str,
    log_level: str,
    log_format: str,
    replica: int,
    commands_address: str,
    events_address: str,
    parent: int,
) -> None:
    """Main function of the child. Its last message is an `EngineFailed` unless it was told to leave."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    configure_logging(log_level, style=log_format)
    context = zmq.Context()
    commands, events = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for socket in (commands, events):
        socket.set_hwm(0)
    events.setsockopt(zmq.LINGER, int(STOP_SECONDS * 1000))
    commands.connect(commands_address)
    events.connect(events_address)
    encoder = msgspec.msgpack.Encoder()

    def send(messages: list[Message]) -> None:
        events.send(encoder.encode(make_news(messages)))

    status = 0
    try:
        if engine.data_parallel > 1:
            _take_devices(model, engine, replica)
        module, _, function = build.partition(":")
        build_engine: BuildEngine = getattr(import_for_good(module), function)
        with closing(build_engine(model, engine, progress_sender(send))) as built:
            settle()
            send([EngineReady(facts=built.facts)])
            run_service(built, _SocketInbox(commands, parent), send)
    except BaseException as error:  # the parent must learn of whatever ends this process
        send([describe_failure(error)])
        status = 1
    orphaned = os.getppid() != parent  # then nobody reads the last words, or removes the sockets' folder
    commands.close(linger=0)
    events.close(linger=0 if orphaned else None)
    context.term()
    if orphaned and (path := commands_address.removeprefix("ipc://")) != commands_address:
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)
    sys.stderr.flush()
    # Nothing is left to save, and taking down a process full of compiled kernels takes seconds.
    os._exit(status)
