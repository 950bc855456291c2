"""A server in a process of its own, over the fake engine, for tests that speak real HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

HELPERS = Path(__file__).parent
SOURCE = HELPERS.parents[1] / "src"


@dataclass
class LiveServer:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=30, **options)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=30)

    def generate(self, **body: Any) -> Any:
        response = self.post("/generate", body)
        assert response.status_code == 200, response.text
        return response.json()

    def frames(self, **body: Any) -> list[Any]:
        """The parsed frames of a stream, without its end mark, which must be there."""
        response = self.post("/generate", body | {"stream": True}, stream=True)
        assert response.status_code == 200, response.text
        lines = [line.decode() for line in response.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line[len("data: ") :]) for line in lines[:-1]]

    def engine(self) -> dict[str, Any]:
        """Counters of the engine."""
        return dict(self.get("/server_info").json()["engine"])

    def wait_until_idle(self) -> None:
        wait_for(lambda: self.engine()["running"] == 0)

    def log(self) -> str:
        """What it wrote to standard error."""
        return self.log_file.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


def wait_for(condition: Any, seconds: float = 15.0) -> None:
    """Poll until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(
    folder: Path, *, wait: bool = True, engine: dict[str, Any] | None = None, **server: Any
) -> LiveServer:
    """Start a server for the checkpoint `folder` with settings of `EngineConfig` and `ServerConfig`."""
    port = server.setdefault("port", free_port())
    paths = [str(SOURCE), str(HELPERS), os.environ.get("PYTHONPATH", "")]
    log_file = folder / f"server-{port}.log"
    process = subprocess.Popen(
        [
            sys.executable,
            str(HELPERS / "fake_engine.py"),
            str(folder),
            json.dumps(engine or {}),
            json.dumps(server),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stderr=log_file.open("w"),
    )
    live = LiveServer(f"http://127.0.0.1:{port}", process, log_file)
    if wait:
        wait_for(lambda: process.poll() is not None or _is_ready(live))
    return live


def _is_ready(live: LiveServer) -> bool:
    try:
        return live.get("/health").status_code == 200
    except requests.ConnectionError:
        return False


@contextmanager
def running(folder: Path, **server: Any) -> Iterator[LiveServer]:
    """A server that is stopped in the end, whatever happens."""
    live = start(folder, **server)
    try:
        yield live
    finally:
        if live.process.poll() is None:
            live.process.kill()
        live.process.wait()
