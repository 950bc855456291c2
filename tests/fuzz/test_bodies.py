"""Hostile bodies on every route: each is answered, none is a failure of the server, and no bit moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import requests
from fuzzing import SECONDS, Watched, check_answer, rounds, write_fuzzed_checkpoint
from live_server import LiveServer, ending, launch_bundled, running
from mutated_bodies import VALID, mutated, text_of

A_ROUND = 150


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
    found_by = f"POST {path} {data[:800]!r}"
    try:
        response = session.post(server.url + path, data=data, timeout=(5, 60))
    except requests.ReadTimeout:
        return  # a long answer of a real model: the client leaves, and the answer is aborted
    check_answer(response, found_by)


def test_the_bodies_are_valid_before_they_are_changed(fake: LiveServer) -> None:
    for path, body in VALID:
        data = text_of(body).encode()
        response = requests.post(fake.url + path, data=data, timeout=30)
        told = response.json()["error"]["code"] if response.status_code == 400 else None
        assert response.status_code == 200 or told == "unsupported_value", (path, response.text)


def test_a_server_without_a_model_of_its_own(fake: LiveServer) -> None:
    fuzz(fake, SECONDS / 2, A_ROUND)


def test_the_bundled_model(bundled: LiveServer) -> None:
    fuzz(bundled, SECONDS / 2, A_ROUND // 10)


def fuzz(server: LiveServer, seconds: float, size: int) -> None:
    watched = Watched(server)
    with requests.Session() as session:
        for number in rounds(seconds):
            random = Random(number)
            for _ in range(size):
                send(session, server, *mutated(random))
            watched.check(f"SAMEBITS_FUZZ_SEED={number}")


def test_a_server_that_fails_is_found(tmp_path: Path) -> None:
    """The inverse: answers that no server should give are told of."""
    for status, body in ((500, b"{}"), (400, b'{"error": "no"}'), (400, b"<html>"), (502, b"")):
        response = requests.Response()
        response.status_code, response._content = status, body
        response.headers["content-type"] = "application/json"
        with pytest.raises((AssertionError, TypeError, KeyError, ValueError)):
            check_answer(response, "planted")
