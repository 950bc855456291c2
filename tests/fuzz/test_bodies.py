"""Hostile bodies on every route: each is answered, none is a failure of the server, and no bit moves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
import requests
from fuzzing import SECONDS, Watched, check_answer, rounds, write_fuzzed_checkpoint
from live_server import LiveServer, ending, launch_bundled, running
from mutated_bodies import VALID, mutated, text_of

A_ROUND = 160
CLIENTS = 4
PATIENCE = 10.0


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Quick, and with the whole server before it."""
    with running(write_fuzzed_checkpoint(tmp_path_factory.mktemp("fuzzed"))) as live:
        yield live


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with ending(launch_bundled(tmp_path_factory.mktemp("fuzzed"))) as live:
        live.wait_until_ready(400)
        yield live


def send(session: requests.Session, server: LiveServer, path: str, data: bytes) -> None:
    """Send a body, and judge the answer. One that takes long is left, as a client would, and so is aborted."""
    found_by = f"POST {path} {data[:800]!r}"
    end = time.monotonic() + PATIENCE
    content = b""
    try:
        with session.post(server.url + path, data=data, timeout=(5, PATIENCE), stream=True) as response:
            for part in response.iter_content(1 << 16):
                content += part
                if time.monotonic() > end:
                    return
    except requests.ReadTimeout:
        return
    check_answer(response.status_code, response.headers.get("content-type", ""), content, found_by)


def test_the_bodies_are_valid_before_they_are_changed(fake: LiveServer) -> None:
    for path, body in VALID:
        data = text_of(body).encode()
        response = requests.post(fake.url + path, data=data, timeout=30)
        assert response.status_code == 200, (path, response.text)


def test_a_server_without_a_model_of_its_own(fake: LiveServer) -> None:
    fuzz(fake, SECONDS / 2, A_ROUND)


def test_the_bundled_model(bundled: LiveServer) -> None:
    fuzz(bundled, SECONDS / 2, A_ROUND // 10)


def fuzz(server: LiveServer, seconds: float, size: int) -> None:
    """Rounds of `size` bodies from a few clients at once, while the probe is asked again and again."""
    watched = Watched(server)
    with ThreadPoolExecutor(CLIENTS) as pool:
        for number in rounds(seconds):
            found_by = f"SAMEBITS_FUZZ_SEED={number}"
            seeds = [f"{number}/{client}" for client in range(CLIENTS)]
            clients = [pool.submit(send_many, server, seed, size // CLIENTS) for seed in seeds]
            while not all(client.done() for client in clients):
                assert watched.probe() == watched.bits, f"the probe's bits changed: {found_by}"
            for client in clients:
                client.result()
            watched.check(found_by)


def send_many(server: LiveServer, seed: str, size: int) -> None:
    random = Random(seed)
    with requests.Session() as session:
        for _ in range(size):
            send(session, server, *mutated(random))


def test_a_server_that_fails_is_found() -> None:
    """The inverse: answers that no server should give are told of."""
    good = b'{"error": {"message": "m", "type": "t", "param": null, "code": null}}'
    check_answer(400, "application/json", good, "")
    for status, kind, content in (
        (500, "application/json", good),
        (400, "text/html", good),
        (400, "application/json", good.replace(b'"m"', b'""')),
        (400, "application/json", good.replace(b', "code": null', b"")),
        (204, "application/json", b""),
        (200, "text/event-stream", b'data: {"error": {"type": "engine_error"}}'),
    ):
        with pytest.raises(AssertionError):
            check_answer(status, kind, content, "planted")


def test_a_moved_bit_is_found(fake: LiveServer) -> None:
    watched = Watched(fake)
    watched.check("nothing")
    digits = [at for at, letter in enumerate(watched.bits) if letter.isdigit()]
    at = digits[len(digits) // 2]
    watched.bits = watched.bits[:at] + str((int(watched.bits[at]) + 1) % 10) + watched.bits[at + 1 :]
    with pytest.raises(AssertionError, match="bits changed"):
        watched.check("planted")
