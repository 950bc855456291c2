"""What a server says while its engine starts, and that it can be interrupted then."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_engine import write_checkpoint
from live_server import ending, engine_process, free_port, launch, running, wait_for

from samebits.server.start_log import StartLog


def test_the_servers_process_loads_no_numerics() -> None:
    """It starts at once, and is small beside the engine's."""
    code = "import sys, samebits.server.lifecycle; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()).isdisjoint({"torch", "numba", "numpy", "transformers", "opentelemetry"})


def spoken(caplog: pytest.LogCaptureFixture, news: list[tuple[float, str, int, int]]) -> list[str]:
    """The lines at `info` for progress that comes at these seconds."""
    now = 0.0
    start_log = StartLog(lambda: now)
    with caplog.at_level(logging.INFO, logger="samebits.server"):
        for seconds, stage, done, total in news:
            now = seconds
            start_log(stage, done, total)
    return [record.getMessage() for record in caplog.records]


def test_a_long_stage_speaks_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    news = [(0.9 * number, "compiling kernels", number, 10) for number in range(11)]
    assert spoken(caplog, news) == [
        "compiling kernels: 3 of 10",
        "compiling kernels: 6 of 10",
        "compiling kernels: 9 of 10",
        "compiling kernels: done in 9.0 s",
    ]


def test_short_stages_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    news = [(0.1 * number, f"stage {number // 10}", number % 10, 9) for number in range(100)]
    assert spoken(caplog, news) == []


def test_a_stage_that_comes_again_is_timed_anew(caplog: pytest.LogCaptureFixture) -> None:
    news = [(0.0, "loading", 0, 1), (3.0, "loading", 1, 1), (60.0, "loading", 0, 1), (61.0, "loading", 1, 1)]
    assert spoken(caplog, news) == ["loading: done in 3.0 s"]


@pytest.mark.parametrize("moment", ["before the engine speaks", "while kernels are compiled"])
def test_an_interrupted_start_is_clean(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's Ctrl-C goes to the whole group, the engine's process among them."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "empty"))
    port = free_port()
    arguments = ["-m", "samebits", "serve", "--port", str(port), "--log-level", "debug"]
    with ending(launch(arguments, port, tmp_path, start_new_session=True)) as live:
        wanted = "starting the engine" if moment.startswith("before") else "compiling kernels"
        wait_for(lambda: wanted in live.log(), 120)
        wait_for(lambda: "spawn_main" in children(live.process.pid))
        child = engine_process(live)
        os.killpg(live.process.pid, signal.SIGINT)
        assert live.process.wait(timeout=60) == 0
        assert "stopped while the model was being loaded" in live.log()
        assert "Traceback" not in live.log()
        wait_for(lambda: not Path(f"/proc/{child}").exists())


def test_the_engine_hears_no_terminal_from_its_first_moment_on(tmp_path: Path) -> None:
    with running(write_checkpoint(tmp_path), wait=False) as live:
        wait_for(lambda: live.process.poll() is None and "spawn_main" in children(live.process.pid), 60)
        child = engine_process(live)

        def is_ready() -> bool:
            os.kill(child, signal.SIGINT)
            return " ready on " in live.log()

        wait_for(is_ready, 60)
        assert live.stop() == 0
        assert "Traceback" not in live.log()


def children(parent: int) -> str:
    """Command lines of the children of a process."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return " ".join(Path(f"/proc/{child}/cmdline").read_text() for child in found)
