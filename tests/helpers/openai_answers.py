"""Answers of the OpenAI routes, read as raw HTTP."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import requests
from live_server import LiveServer


def bits(value: float | None) -> int | None:
    return None if value is None else int(struct.unpack("<I", struct.pack("<f", value))[0])


def frames(server: LiveServer, path: str, **body: Any) -> list[Any]:
    """The parsed frames of a stream, whose end mark must be there."""
    response = server.post(path, body | {"stream": True}, stream=True)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.decode() for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def events(server: LiveServer, path: str, **body: Any) -> list[Any]:
    """The parsed events of a stream whose frames name their type, too."""
    response = server.post(path, body | {"stream": True}, stream=True)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return list(parsed_events(response))


def parsed_events(response: requests.Response) -> Iterator[Any]:
    """Each event as it comes."""
    lines = (line.decode() for line in response.iter_lines())
    for name in lines:
        data = json.loads(next(lines).removeprefix("data: "))
        assert name == f"event: {data['type']}"
        assert next(lines, "") == ""
        yield data
