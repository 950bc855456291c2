"""A server in a process of its own, on a free port of this machine: waited for, asked over HTTP, and stopped."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from samebits.config import EngineConfig, ModelConfig, flag_text
from samebits.errors import EngineError
from samebits.verify.http import Client

START_SECONDS = 300.0
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class ServerProcess:
    """A server that is ready."""

    port: int
    process: subprocess.Popen[bytes]
    client: Client
    log: IO[bytes]

    def output(self) -> str:
        """All that it has printed."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def last_words(self) -> str:
        """The last lines of it."""
        return "\n".join(self.output().splitlines()[-20:])


@contextmanager
def server_process(
    arguments: Callable[[int], Sequence[str]],
    stop_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """A Python process, of the `arguments` that a port asks for, ready at the start and told to stop at the end.

    Raises `EngineError` with its last words where it does not start, `subprocess.TimeoutExpired` where it does not
    stop in time.
    """
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *arguments(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        server = ServerProcess(port, process, Client(f"http://127.0.0.1:{port}"), log)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(stop_seconds)


def serve_arguments(model: ModelConfig, engine: EngineConfig, port: int) -> list[str]:
    """`samebits serve` with these settings, for `server_process`."""
    flags = [
        flag_text(entry.name, getattr(settings, entry.name))
        for settings in (model, engine)
        for entry in dataclasses.fields(settings)
    ]
    return ["-m", "samebits", "serve", f"--port={port}", *flags]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_ready(server: ServerProcess) -> None:
    """Return when /health says 200. Raises `EngineError` where the server ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise EngineError(f"the server did not start:\n{server.last_words()}")
        # It refuses connections until it listens.
        with suppress(EngineError):
            if server.client.request("GET", "/health")[0] == 200:
                return
        time.sleep(POLL_SECONDS)
    raise EngineError(f"the server was not ready after {START_SECONDS:g} s:\n{server.last_words()}")
