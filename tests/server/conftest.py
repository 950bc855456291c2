"""Live servers for the tests that do not disturb them: one over the fake engine, one over the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import write_checkpoint
from live_server import LiveServer, ending, free_port, launch, running

MODEL = "bundled"
SETTINGS: dict[str, Any] = {"kv_memory_mib": 64, "step_tokens": 48}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), delay=0.002)
    with running(folder, max_body_mib=1) as live:
        yield live


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    port = free_port()
    arguments = ["-m", "samebits", "serve", MODEL, "--port", str(port)]
    for name, value in SETTINGS.items():
        arguments += ["--" + name.replace("_", "-"), str(value)]
    with ending(launch(arguments, port, tmp_path_factory.mktemp("log"))) as live:
        live.wait_until_ready(400)
        assert live.process.poll() is None, live.log()
        yield live
