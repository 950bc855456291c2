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
BUNDLED_SETTINGS: dict[str, Any] = {"kv_memory_mib": 64, "step_tokens": 48}
"""engine settings of `launch_bundled`: small, so that prompts come in chunks"""


@dataclass
class LiveServer:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=30, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **options)

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

    def wait_until_ready(self, seconds: float = 30.0) -> None:
        """Wait until it is ready, or has ended."""
        wait_for(lambda: self.process.poll() is not None or _is_ready(self), seconds)

    def wait_until_idle(self) -> None:
        wait_for(lambda: self.engine()["running"] == 0)

    def log(self) -> str:
        """What it wrote to standard error."""
        return self.log_file.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


def engine_process(live: LiveServer) -> int:
    """Id of the server's child that holds the engine."""
    children = Path(f"/proc/{live.process.pid}/task/{live.process.pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return next(child for child, command in commands.items() if b"spawn_main" in command)


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
    """Start a fake server for the checkpoint `folder` with settings of `EngineConfig` and `ServerConfig`."""
    port = server.setdefault("port", free_port())
    script = str(HELPERS / "fake_engine.py")
    live = launch([script, str(folder), json.dumps(engine or {}), json.dumps(server)], port, folder)
    if wait:
        live.wait_until_ready()
    return live


def launch(arguments: list[str], port: int, log_folder: Path, start_new_session: bool = False) -> LiveServer:
    """Start a Python process that will listen on `port`."""
    paths = [str(SOURCE), str(HELPERS), os.environ.get("PYTHONPATH", "")]
    log_file = log_folder / f"server-{port}.log"
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stderr=log_file.open("w"),
        start_new_session=start_new_session,
    )
    return LiveServer(f"http://127.0.0.1:{port}", process, log_file)


def launch_bundled(log_folder: Path) -> LiveServer:
    """Start a server over the bundled model."""
    port = free_port()
    arguments = ["-m", "samebits", "serve", "bundled", "--port", str(port)]
    for name, value in BUNDLED_SETTINGS.items():
        arguments += ["--" + name.replace("_", "-"), str(value)]
    return launch(arguments, port, log_folder)


def _is_ready(live: LiveServer) -> bool:
    try:
        return live.get("/health").status_code == 200
    except requests.ConnectionError:
        return False


@contextmanager
def running(folder: Path, **server: Any) -> Iterator[LiveServer]:
    """A server that is stopped in the end, whatever happens."""
    with ending(start(folder, **server)) as live:
        yield live


@contextmanager
def ending(live: LiveServer) -> Iterator[LiveServer]:
    """`live`, killed in the end if it still runs."""
    try:
        yield live
    finally:
        if live.process.poll() is None:
            live.process.kill()
        live.process.wait()
