"""One live server for the tests that do not disturb it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_engine import write_checkpoint
from live_server import LiveServer, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), delay=0.002)
    with running(folder, max_body_mib=1) as live:
        yield live
