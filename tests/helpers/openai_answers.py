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


def chat(server: LiveServer, text: str = "hi", **body: Any) -> Any:
    body.setdefault("messages", [{"role": "user", "content": text}])
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    return response.json()


def chat_frames(server: LiveServer, text: str = "hi", **body: Any) -> list[Any]:
    body.setdefault("messages", [{"role": "user", "content": text}])
    return frames(server, "/v1/chat/completions", **body)


def joined(pieces: list[Any]) -> dict[int, dict[str, Any]]:
    """A stream put together: one choice each, as a response has them."""
    choices: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for part in piece["choices"]:
            delta = part.pop("delta")
            if part["index"] not in choices:
                assert delta == {"role": "assistant", "content": ""}, "the role comes first"
                message = {"role": "assistant", "content": "", "refusal": None}
                choices[part["index"]] = part | {"message": message}
                continue
            choice = choices[part["index"]]
            assert "samebits" not in choice, "nothing follows the end"
            join_delta(choice["message"], delta)
            logprobs = part.pop("logprobs")
            if logprobs is not None:
                earlier = choice["logprobs"] or {"content": []}
                choice["logprobs"] = {"content": earlier["content"] + logprobs["content"], "refusal": None}
            if "token_ids" in part:
                choice["token_ids"] = choice.get("token_ids", []) + part.pop("token_ids")
            choice.update(part)
    for choice in choices.values():
        if choice["message"].get("tool_calls") and not choice["message"]["content"]:
            choice["message"]["content"] = None
    return choices


def join_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name in ("content", "reasoning_content"):
        if name in delta:
            message[name] = message.get(name, "") + delta[name]
    for part in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if "id" in part:
            assert part["index"] == len(calls), "calls come in order, each with its name first"
            calls.append({name: part[name] for name in ("id", "type", "function")})
        else:
            calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
