"""Live servers for the tests that do not disturb them: one over the fake engine, one over the bundled model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fake_engine import PARROT_TEMPLATE, write_checkpoint
from live_server import LiveServer, ending, launch_bundled, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), delay=0.002)
    with running(folder, max_body_mib=1) as live:
        yield live


@pytest.fixture(scope="session")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A chat model that says what the last message says."""
    folder = write_checkpoint(tmp_path_factory.mktemp("parrot"), parrot=True, delay=0.005)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": PARROT_TEMPLATE}))
    with running(folder) as live:
        yield live


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with ending(launch_bundled(tmp_path_factory.mktemp("log"))) as live:
        live.wait_until_ready(400)
        assert live.process.poll() is None, live.log()
        yield live
