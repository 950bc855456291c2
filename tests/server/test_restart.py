"""The death of the engine: those who wait hear of it at once, and another engine takes its place."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from fake_engine import CRASH_TOKEN, KILL_TOKEN, write_checkpoint
from live_server import LiveServer, engine_process, running, wait_for

from samebits.server.supervise import WINDOW_SECONDS, RestartBudget

SHORT = {"input_ids": [5, 6], "sampling_params": {"temperature": 0.0, "max_new_tokens": 30}}
LONG = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 1500, "ignore_eos": True}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, delay=0.005)


def phase_of(live: LiveServer) -> str:
    return str(live.get("/ready").json()["status"])


def settle(folder: Path, **settings: object) -> None:
    """Change what the next engine will be."""
    write_checkpoint(folder, **settings)


@pytest.mark.parametrize("token", [CRASH_TOKEN, KILL_TOKEN])
def test_another_engine_answers_as_the_lost_one_would_have(folder: Path, token: int) -> None:
    with running(folder) as live, ThreadPoolExecutor() as pool:
        lost = {"input_ids": [7, 8, 9], "sampling_params": {"max_new_tokens": 200, "ignore_eos": True}}
        expected = live.generate(**lost)["output_ids"]
        settle(folder, delay=0.005, load_seconds=0.5)
        body = lost | {"stream": True, "incremental": True}
        streamed = pool.submit(lambda: requests.post(live.url + "/generate", json=body, timeout=30))
        whole = pool.submit(lambda: requests.post(live.url + "/generate", json=lost, timeout=30))
        wait_for(lambda: live.engine()["running"] == 2)
        start = time.monotonic()
        assert live.post("/generate", {"input_ids": [token]}).status_code == 500
        assert whole.result().status_code == 500
        last = streamed.result().text.strip().split("\n\n")[-1]
        assert "engine_error" in last, "a stream ends with an error frame"
        assert time.monotonic() - start < 3
        assert phase_of(live) == "restarting"
        refused = live.post("/generate", SHORT)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "anew" in refused.json()["error"]["message"]
        assert live.get("/health").status_code == 200, "the server itself is alive"
        assert "samebits_ready 0.0" in live.get("/metrics").text
        wait_for(lambda: phase_of(live) == "ready")
        assert live.generate(**lost)["output_ids"] == expected
        assert "samebits_engine_restarts_total 1.0" in live.get("/metrics").text
        assert live.stop() == 0


def test_an_idle_engine_is_missed_too(folder: Path) -> None:
    with running(folder) as live:
        old = engine_process(live)
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: phase_of(live) != "ready", 3)
        wait_for(lambda: phase_of(live) == "ready")
        assert engine_process(live) != old
        assert live.generate(**SHORT)["output_ids"]


def test_restarts_run_out(folder: Path) -> None:
    with running(folder, engine_restarts=1) as live:
        live.post("/generate", {"input_ids": [KILL_TOKEN]})
        wait_for(lambda: phase_of(live) == "ready")
        live.post("/generate", {"input_ids": [KILL_TOKEN]})
        assert live.process.wait(timeout=20) == 1
        log = live.log()
        assert log.count("SIGKILL") == 2
        assert "--engine-restarts 1" in log


def test_an_engine_that_cannot_start_again_uses_them_up(folder: Path) -> None:
    with running(folder, engine_restarts=2) as live:
        settle(folder, broken=True)
        live.post("/generate", {"input_ids": [KILL_TOKEN]})
        assert live.process.wait(timeout=20) == 1
        assert live.log().count("broken on purpose") == 2


def test_another_fingerprint_is_not_served(folder: Path) -> None:
    with running(folder) as live:
        settle(folder, fingerprint="another")
        live.post("/generate", {"input_ids": [KILL_TOKEN]})
        assert live.process.wait(timeout=20) == 1
        assert "with the fingerprint another, not fake-fingerprint" in live.log()


def test_sigterm_while_restarting(folder: Path) -> None:
    with running(folder) as live:
        settle(folder, load_seconds=60)
        live.post("/generate", {"input_ids": [KILL_TOKEN]})
        wait_for(lambda: phase_of(live) == "restarting")
        start = time.monotonic()
        assert live.stop() == 0
        assert time.monotonic() - start < 10


def test_the_budget_is_a_sliding_window() -> None:
    now = [0.0]
    budget = RestartBudget(5, lambda: now[0])
    assert [budget.take() for _ in range(7)] == [0.0, 1.0, 4.0, 16.0, 30.0, None, None]
    now[0] = WINDOW_SECONDS - 1
    assert budget.take() is None
    now[0] = WINDOW_SECONDS
    assert budget.take() == 0.0
    assert RestartBudget(0).take() is None
