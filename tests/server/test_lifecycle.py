"""A server's life: start, disconnects, aborts, drain, and the death of its engine."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from fake_engine import CRASH_TOKEN, KILL_TOKEN, write_checkpoint
from live_server import LiveServer, engine_process, free_port, running, wait_for

LONG = {
    "input_ids": [5, 6],
    "sampling_params": {"temperature": 0.0, "max_new_tokens": 1500, "ignore_eos": True},
}
SHORT = {"input_ids": [5, 6], "sampling_params": {"temperature": 0.0, "max_new_tokens": 3}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose steps take 5 ms."""
    return write_checkpoint(tmp_path, delay=0.005)


def in_background(call: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    return thread, found


def wait_until_running(live: LiveServer, count: int = 1) -> None:
    wait_for(lambda: live.engine()["running"] == count)


def test_information(server: LiveServer) -> None:
    info = server.get("/server_info").json()
    assert info["fingerprint"] == "fake-fingerprint"
    assert info["page_tokens"] == 64
    assert set(info["engine"]) >= {"running", "waiting", "steps"}
    assert server.get("/get_server_info").status_code == 200
    model = server.get("/model_info").json()
    assert (model["model_path"], model["is_generation"], model["has_chat_template"]) == ("fake", True, True)
    assert server.get("/get_model_info").json() == model
    assert server.get("/health").json() == server.get("/ready").json() == {"status": "ready"}
    assert server.get("/health_generate").status_code == 200
    assert server.get("/flush_cache").status_code == 200
    assert "version" in server.get("/version").json()


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_aborts(server: LiveServer, stream: bool) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(LONG | {"stream": stream}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_until_running(server)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    before = server.engine()["generated_tokens"]
    server.wait_until_idle()
    assert server.engine()["generated_tokens"] - before < 1200


@pytest.mark.parametrize("name", ["mine", "batch"])
def test_abort_by_id(server: LiveServer, name: str) -> None:
    prompts: dict[str, Any] = {"rid": name}
    if name == "batch":
        prompts["input_ids"] = [[5], [6]]
    thread, found = in_background(lambda: server.generate(**(LONG | prompts)))
    wait_until_running(server, 2 if name == "batch" else 1)
    assert server.post("/abort_request", {"rid": "another"}).status_code == 200
    assert server.engine()["running"] > 0
    assert (
        server.post("/generate", SHORT | {"rid": f"{name}_0" if name == "batch" else name}).status_code == 400
    )
    assert server.post("/abort_request", {"rid": name}).status_code == 200
    thread.join()
    answers = found[0] if name == "batch" else [found[0]]
    for answer in answers:
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"
        assert len(answer["output_ids"]) == answer["meta_info"]["completion_tokens"] < 1500
    assert server.generate(**(SHORT | {"rid": name}))["meta_info"]["id"] == name


def test_abort_all_and_bad_aborts(server: LiveServer) -> None:
    thread, found = in_background(lambda: server.frames(**LONG))
    wait_until_running(server)
    assert server.post("/abort_request", {"abort_all": True}).status_code == 200
    thread.join()
    assert found[0][-1]["meta_info"]["finish_reason"]["type"] == "abort"
    assert server.post("/abort_request", {}).status_code == 400
    assert server.post("/abort_request", {"rid": 5}).status_code == 400


def test_sigterm_drains(folder: Path) -> None:
    with running(folder, drain_seconds=20) as live:
        with ThreadPoolExecutor() as pool:
            body = LONG | {"sampling_params": {"temperature": 0.0, "max_new_tokens": 150, "ignore_eos": True}}
            whole, streamed = (
                pool.submit(lambda: live.generate(**body)),
                pool.submit(lambda: live.frames(**body)),
            )
            wait_until_running(live, 2)
            live.process.send_signal(signal.SIGTERM)
            wait_for(lambda: live.get("/ready").status_code == 503)
            assert live.get("/ready").json() == {"status": "draining"}
            assert live.get("/health").status_code == 200, "it is alive"
            refused = live.post("/generate", SHORT)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert len(whole.result()["output_ids"]) == 150
            assert streamed.result()[-1]["output_ids"] == whole.result()["output_ids"]
        assert live.process.wait(timeout=20) == 0


def test_drain_has_an_end(folder: Path) -> None:
    with running(folder, drain_seconds=0.3) as live:
        thread, found = in_background(lambda: live.generate(**LONG))
        wait_until_running(live)
        start = time.monotonic()
        assert live.stop() == 0
        assert time.monotonic() - start < 20
        thread.join()
        assert found[0]["meta_info"]["finish_reason"]["type"] == "abort"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_at_once(folder: Path, number: signal.Signals) -> None:
    with running(folder, drain_seconds=60) as live:
        thread, found = in_background(lambda: live.frames(**LONG))
        wait_until_running(live)
        live.process.send_signal(number)
        wait_for(lambda: live.get("/ready").status_code == 503)
        live.process.send_signal(number)
        assert live.process.wait(timeout=20) == 0
        thread.join()
        assert found[0][-1]["meta_info"]["finish_reason"]["type"] == "abort"


def test_signals_to_the_whole_group_spare_the_engine(folder: Path) -> None:
    """A terminal's Ctrl-C reaches parent and child; running requests still finish."""
    with running(folder, drain_seconds=20) as live:
        body = LONG | {"sampling_params": {"temperature": 0.0, "max_new_tokens": 100, "ignore_eos": True}}
        thread, found = in_background(lambda: live.generate(**body))
        wait_until_running(live)
        os.kill(engine_process(live), signal.SIGINT)
        os.kill(engine_process(live), signal.SIGTERM)
        os.kill(engine_process(live), signal.SIGHUP)
        live.process.send_signal(signal.SIGINT)
        thread.join()
        assert len(found[0]["output_ids"]) == 100
        assert live.process.wait(timeout=20) == 0


@pytest.mark.parametrize("token", [CRASH_TOKEN, KILL_TOKEN])
@pytest.mark.parametrize("stream", [False, True])
def test_engine_death_fails_everything_and_exits(folder: Path, token: int, stream: bool) -> None:
    with running(folder, engine_restarts=0) as live:
        thread, found = in_background(lambda: requests.post(live.url + "/generate", json=LONG, timeout=30))
        wait_until_running(live)
        start = time.monotonic()
        response = live.post("/generate", {"input_ids": [token], "stream": stream})
        thread.join()
        assert time.monotonic() - start < 10
        expected = "a step went wrong" if token == CRASH_TOKEN else "SIGKILL"
        for answer in (response, found[0]):
            assert answer.status_code == 500
            assert expected in answer.json()["error"]["message"]
        assert live.process.wait(timeout=20) == 1
        log = live.log()
        assert expected in log


def test_a_full_queue_asks_to_come_back(folder: Path) -> None:
    with running(folder, engine={"max_waiting": 1}) as live:
        thread, _ = in_background(lambda: live.generate(**LONG))
        wait_until_running(live)
        for stream in (False, True):
            refused = live.post("/generate", SHORT | {"stream": stream})
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert refused.json()["error"]["code"] == "queue_full"
        live.post("/abort_request", {"abort_all": True})
        thread.join()
        assert len(live.generate(**SHORT)["output_ids"]) == 3


def test_engine_leaves_with_its_parent(folder: Path) -> None:
    with running(folder) as live:
        child = engine_process(live)
        live.process.kill()
        live.process.wait()
        wait_for(
            lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()
        )


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, with so short a path that sockets fit in it."""
    with tempfile.TemporaryDirectory(prefix="sb-") as path:
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)


@pytest.mark.parametrize(
    ("number", "loading"),
    [
        (signal.SIGTERM, False),
        (signal.SIGINT, False),
        (signal.SIGKILL, False),
        (signal.SIGTERM, True),
        (signal.SIGINT, True),
    ],
)
def test_no_temporary_file_stays(
    tmp_path: Path, temporary: Path, number: signal.Signals, loading: bool
) -> None:
    """However it ends, be it killed: then its engine tidies up."""
    folder = write_checkpoint(tmp_path, load_seconds=60 if loading else 0)
    with running(folder, wait=not loading) as live:
        wait_for(lambda: list(temporary.glob("samebits-*/commands")))
        live.process.send_signal(number)
        live.process.wait(timeout=20)
        wait_for(lambda: not list(temporary.iterdir()))


def test_a_killed_engine_leaves_no_temporary_file(folder: Path, temporary: Path) -> None:
    with running(folder) as live:
        [first] = temporary.iterdir()
        os.kill(engine_process(live), signal.SIGKILL)
        wait_for(lambda: not first.exists())
        wait_for(lambda: list(temporary.iterdir()))
        assert live.stop() == 0
        assert not list(temporary.iterdir())


def test_the_next_start_tidies_up_after_a_server_killed_with_its_engine(
    folder: Path, temporary: Path
) -> None:
    with running(folder) as live:
        [first] = temporary.iterdir()
        engine = engine_process(live)
        os.kill(engine, signal.SIGSTOP)  # so that it cannot tidy up
        live.process.kill()
        live.process.wait()
        os.kill(engine, signal.SIGKILL)
    assert first.exists()
    with running(folder) as live:
        [second] = temporary.iterdir()
        assert second != first
        assert live.stop() == 0
    assert not list(temporary.iterdir())


def test_health_while_loading(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, load_seconds=120)
    with running(folder, wait=False) as live:
        wait_for(lambda: _answers(live), 60)
        assert live.get("/health").json() == live.get("/ready").json() == {"status": "starting"}
        assert live.get("/ready").status_code == 503
        assert "samebits_ready 0.0" in live.get("/metrics").text
        assert live.post("/generate", SHORT).status_code == 503
        assert live.stop() == 0


def _answers(live: LiveServer) -> bool:
    try:
        return live.get("/health").status_code == 503
    except requests.ConnectionError:
        return False


def test_a_broken_checkpoint_says_so(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, broken=True)
    with running(folder, wait=False) as live:
        assert live.process.wait(timeout=20) == 1
        log = live.log()
        assert "broken on purpose" in log
        assert "Traceback" not in log


def test_a_taken_port_is_named(folder: Path) -> None:
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with running(folder, wait=False, port=port) as live:
            assert live.process.wait(timeout=20) != 0
            log = live.log()
            assert f"127.0.0.1:{port}" in log
            assert "taken" in log


def test_log_lines(folder: Path) -> None:
    with running(folder) as live:
        assert live.stop() == 0
        log = live.log()
        for part in ("fake", "exact", "fake-fingerprint", "KV pages", live.url):
            assert part in log, log
