"""What the OpenAI routes refuse: each with a status, OpenAI's error body, and the field's name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from fake_engine import FAULT_TOKEN
from live_server import LiveServer

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

COMPLETIONS: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "prompt", None),
    ({"prompt": ""}, "prompt", None),
    ({"prompt": []}, "prompt", None),
    ({"prompt": [[]]}, "prompt", None),
    ({"prompt": ["a", 5]}, "prompt", None),
    ({"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    ({"prompt": [5, 99999]}, "prompt", None),
    ({"prompt": [5] * 2048}, "prompt", "context_length_exceeded"),
    ({"prompt": "a", "best_of": 2}, "best_of", "unsupported_value"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "unsupported_parameter"),
    ({"prompt": "a", "guided_json": {"nullable": True}}, "guided_json", "unsupported_value"),
    ({"prompt": "a", "guided_json": "{"}, "guided_json", "invalid_value"),
    ({"prompt": "a", "guided_json": 5}, "guided_json", "invalid_type"),
    ({"prompt": "a", "guided_regex": "(a"}, "guided_regex", "unsupported_value"),
    ({"prompt": "a", "guided_choice": []}, "guided_choice", None),
    ({"prompt": "a", "guided_choice": ["a", ""]}, "guided_choice", "invalid_type"),
    ({"prompt": "a", "guided_grammar": "start: /a/ b"}, "guided_grammar", "unsupported_value"),
    ({"prompt": "a", "guided_grammar": "root ::= ("}, "guided_grammar", "invalid_value"),
    ({"prompt": "a", "ebnf": 'start: %json {"if": {}}'}, "ebnf", "unsupported_value"),
    ({"prompt": "a", "ebnf": "start: a\na[temperature=0.5]: /a/"}, "ebnf", "unsupported_value"),
    ({"prompt": "a", "regex": "a", "json_schema": {}}, "regex", None),
    (
        {"prompt": "a", "structured_outputs": {"regex": r"\bx"}},
        "structured_outputs.regex",
        "unsupported_value",
    ),
    ({"prompt": "a", "structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "invalid_type"),
    ({"prompt": "a", "guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "unsupported_parameter"),
    ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format.type", "unsupported_value"),
    ({"prompt": "a", "colour": "red"}, "colour", "unknown_parameter"),
    ({"prompt": "a", "temperature": "hot"}, "temperature", "invalid_type"),
    ({"prompt": "a", "temperature": -1}, "temperature", None),
    ({"prompt": "a", "top_p": 0}, "top_p", None),
    ({"prompt": "a", "n": 0}, "n", None),
    ({"prompt": "a", "n": 1000}, "n", None),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens", None),
    ({"prompt": "a", "max_tokens": 1, "min_tokens": 2}, "min_tokens", None),
    ({"prompt": "a", "logprobs": -1}, "logprobs", None),
    ({"prompt": "a", "logprobs": 1000}, "logprobs", None),
    ({"prompt": "a", "logprobs": True}, "logprobs", "invalid_type"),
    ({"prompt": "a", "prompt_logprobs": -1}, "prompt_logprobs", None),
    ({"prompt": "a", "prompt_logprobs": 129}, "prompt_logprobs", None),
    ({"prompt": "a", "seed": 1 << 64}, "seed", None),
    ({"prompt": "a", "seed": 1, "sampling_seed": 2}, "sampling_seed", None),
    ({"prompt": "a", "stop": [""]}, "stop", None),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", None),
    ({"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias", None),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", None),
    ({"prompt": "a", "stream": True, "stream_options": {"x": 1}}, "stream_options", "invalid_type"),
    ({"prompt": "a", "rid": ""}, "rid", None),
]

CHATS: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "messages", None),
    ({"messages": []}, "messages", None),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", None),
    ({"messages": [*HI, {"role": "user", "content": 5}]}, "messages[1].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": "a", "mood": 1}]}, "messages[0].mood", "unknown_parameter"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
        "unsupported_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages[0].content[0]",
        "unsupported_value",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        None,
    ),
    (
        {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
        "invalid_type",
    ),
    (
        {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        "response_format.json_schema.schema",
        "unsupported_value",
    ),
    ({"messages": HI, "response_format": {"type": "json_object"}, "regex": "a"}, "regex", None),
    (
        {"messages": HI, "response_format": {"type": "json_object", "schema": {"type": "object"}}},
        "response_format.schema",
        "unknown_parameter",
    ),
    (
        {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}},
        "response_format.json_schema.x",
        "unknown_parameter",
    ),
    ({"messages": HI, "modalities": ["audio"]}, "modalities", "unsupported_value"),
    ({"messages": HI, "tool_choice": "required"}, "tool_choice", None),
    (
        {"messages": HI, "tool_choice": {"type": "function"}, "tools": [TOOL]},
        "tool_choice",
        "unsupported_value",
    ),
    (
        {"messages": HI, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        None,
    ),
    ({"messages": HI, "tool_choice": "maybe"}, "tool_choice", None),
    ({"messages": HI, "tools": [TOOL]}, "tools", "unsupported_value"),
    ({"messages": HI, "tools": [{"type": "web_search"}]}, "tools[0]", "unsupported_value"),
    ({"messages": HI, "functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"messages": HI, "top_logprobs": 2}, "top_logprobs", None),
    ({"messages": HI, "logprobs": True, "top_logprobs": 1000}, "top_logprobs", None),
    ({"messages": HI, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", None),
    ({"messages": HI, "max_completion_tokens": -2}, "max_completion_tokens", None),
    ({"messages": HI, "date": "soon"}, "date", None),
    (
        {"messages": [{"role": "user", "content": "word " * 3000}]},
        "messages",
        "context_length_exceeded",
    ),
]

CASES = [("/v1/completions", *case) for case in COMPLETIONS] + [
    ("/v1/chat/completions", *case) for case in CHATS
]


@pytest.mark.parametrize(("path", "body", "param", "code"), CASES)
def test_refusals_name_the_field(
    server: LiveServer, path: str, body: dict[str, Any], param: str, code: str | None
) -> None:
    for streamed in ({}, {"stream": True}):
        if streamed and "stream_options" in body:
            continue
        response = server.post(path, body | streamed)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
        assert param.split(".")[0].split("[")[0] in error["message"] or code == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_no_json(server: LiveServer, path: str) -> None:
    for data in (b"{", b"[]", b'{"prompt": NaN}', b'{"prompt": "\\ud800"}'):
        response = server.post(path, data=data)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model(server: LiveServer) -> None:
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": HI})):
        response = server.post(path, body | {"model": "gpt-7"})
        assert response.status_code == 404
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        for known in ("fake", "default", ""):
            assert server.post(path, body | {"model": known, "max_tokens": 1}).status_code == 200
    assert server.get("/v1/models/gpt-7").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/audio/speech"),
        ("POST", "/v1/audio/transcriptions"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files/file-1/content"),
        ("DELETE", "/v1/files/file-1"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/moderations"),
        ("POST", "/v1/batches/batch_1/cancel"),
    ],
)
def test_what_is_not_offered(server: LiveServer, method: str, path: str) -> None:
    response = requests.request(method, server.url + path, json={"model": "fake", "input": "a"}, timeout=30)
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported_endpoint")
    assert "does not offer" in error["message"]


def test_a_request_that_fails_while_it_runs(server: LiveServer) -> None:
    """Half a list would look like a whole one, so the response is an error."""
    response = server.post("/v1/completions", {"prompt": [[5], [FAULT_TOKEN]], "max_tokens": 4})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "engine_error"


def test_a_stream_that_fails_ends_with_an_error(server: LiveServer) -> None:
    body = {"prompt": [[5], [FAULT_TOKEN]], "max_tokens": 400, "stream": True}
    response = server.post("/v1/completions", body, stream=True)
    data = response.content.decode()
    assert "[DONE]" not in data
    last = data.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["type"] == "engine_error"


def test_inert_fields_change_nothing(server: LiveServer) -> None:
    inert = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "prediction": {"type": "content", "content": "z"},
    }
    body = {"messages": HI, "max_tokens": 5}
    plain = server.post("/v1/chat/completions", body).json()
    loaded = server.post("/v1/chat/completions", body | inert).json()
    assert plain["choices"] == loaded["choices"]
    blank = {"response_format": {"type": "text"}, "modalities": ["text"], "tools": [], "functions": None}
    assert server.post("/v1/chat/completions", body | blank).json()["choices"] == plain["choices"]
