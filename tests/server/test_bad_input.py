"""Every kind of bad input gets its status and a message that names the field, and disturbs nobody."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest
import requests
from fake_engine import FAULT_TOKEN
from live_server import LiveServer

BAD_JSON = [
    b"",
    b"{",
    b'{"text": "a"',
    b"[]",
    b'"text"',
    b'{"text": "a", "sampling_params": {"temperature": NaN}}',
    b'{"text": "a", "sampling_params": {"temperature": Infinity}}',
    b'{"text": "\xff\xfe"}',
    b'{"text": "\\ud800"}',
    b"[" * 100_000,
]

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"sampling_params": {}}, "text"),
    ({"text": "a", "input_ids": [1]}, "text"),
    ({"text": 5}, "text"),
    ({"text": []}, "text"),
    ({"text": ""}, "text"),
    ({"text": ["a", ""]}, "text"),
    ({"text": ["a", 5]}, "text[1]"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": [[]]}, "input_ids"),
    ({"text": ["a"] * 4097}, "text"),
    ({"text": ["a"] * 65, "sampling_params": {"n": 64}}, "text"),
    ({"input_ids": [[5]] * 65, "sampling_params": [{"n": 64}] * 65}, "input_ids"),
    ({"input_ids": [1, [2]]}, "input_ids"),
    ({"input_ids": [1.5]}, "input_ids[0]"),
    ({"input_ids": ["1"]}, "input_ids[0]"),
    ({"input_ids": [True]}, "input_ids[0]"),
    ({"input_ids": [-1]}, "input_ids"),
    ({"input_ids": [1 << 40]}, "input_ids"),
    ({"input_ids": [5] * 5000}, "input_ids"),
    ({"text": "a", "colour": "red"}, "colour"),
    ({"text": "a", "sampling_params": {"heat": 1}}, "sampling_params.heat"),
    ({"text": ["a", "b"], "sampling_params": [{}, {"heat": 1}]}, "sampling_params[1].heat"),
    ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
    ({"text": "a", "sampling_params": {"temperature": "hot"}}, "sampling_params.temperature"),
    ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature"),
    ({"text": "a", "sampling_params": {"temperature": 1e300}}, "temperature"),
    ({"text": "a", "sampling_params": {"top_p": 0}}, "top_p"),
    ({"text": "a", "sampling_params": {"top_p": 1.5}}, "top_p"),
    ({"text": "a", "sampling_params": {"top_k": -2}}, "top_k"),
    ({"text": "a", "sampling_params": {"top_k": 1.5}}, "sampling_params.top_k"),
    ({"text": "a", "sampling_params": {"min_p": 2}}, "min_p"),
    ({"text": "a", "sampling_params": {"frequency_penalty": 3}}, "frequency_penalty"),
    ({"text": "a", "sampling_params": {"repetition_penalty": 0}}, "repetition_penalty"),
    ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "max_new_tokens"),
    ({"text": "a", "sampling_params": {"max_new_tokens": 1, "min_new_tokens": 2}}, "min_new_tokens"),
    ({"text": "a", "sampling_params": {"min_new_tokens": 500}}, "min_new_tokens"),
    ({"text": "a", "sampling_params": {"n": 0}}, "n"),
    ({"text": "a", "sampling_params": {"n": 100000}}, "n"),
    ({"text": "a", "sampling_params": {"stop": ""}}, "stop"),
    ({"text": "a", "sampling_params": {"stop": [1]}}, "sampling_params.stop[0]"),
    ({"text": "a", "sampling_params": {"stop": ["a"] * 257}}, "stop"),
    ({"text": "a", "sampling_params": {"stop": ["a" * 65_536, "b"]}}, "stop"),
    ({"text": "a", "sampling_params": {"stop_token_ids": [100000]}}, "stop_token_ids"),
    ({"text": "a", "sampling_params": {"stop_token_ids": [5] * 16_385}}, "stop_token_ids"),
    ({"text": "a", "sampling_params": {"logit_bias": {"100000": 1.0}}}, "logit_bias"),
    ({"text": "a", "sampling_params": {"logit_bias": {"x": 1.0}}}, "logit_bias"),
    ({"text": "a", "sampling_params": {"logit_bias": {"5": 1e9}}}, "logit_bias"),
    ({"text": "a", "sampling_params": {"sampling_seed": 1 << 64}}, "sampling_seed"),
    ({"text": "a", "sampling_params": {"sampling_seed": "x"}}, "sampling_seed"),
    ({"text": "a", "sampling_params": {"sampling_seed": 1.5}}, "sampling_params.sampling_seed"),
    ({"text": "a", "sampling_params": {"sample_index": -1}}, "sample_index"),
    ({"text": "a", "sampling_params": {"sample_index": (1 << 31) - 1, "n": 2}}, "sample_index"),
    ({"text": "a", "sampling_params": {"structural_tag": "a"}}, "sampling_params.structural_tag"),
    ({"text": "a", "sampling_params": {"regex": 5}}, "sampling_params.regex"),
    ({"text": "a", "sampling_params": {"json_schema": '{"const": 1e400}'}}, "json_schema"),
    ({"text": "a", "lora_path": "adapter"}, "lora_path"),
    ({"text": "a", "image_data": ["x.png"]}, "image_data"),
    ({"text": "a", "return_hidden_states": True}, "return_hidden_states"),
    ({"text": "a", "return_logprob": True, "logprob_start_len": 99}, "logprob_start_len"),
    ({"text": "a", "return_logprob": True, "top_logprobs_num": 10**6}, "top_logprobs_num"),
    ({"text": "a", "return_logprob": True, "token_ids_logprob": [10**6]}, "token_ids_logprob"),
    ({"text": "a", "return_logprob": True, "token_ids_logprob": [5] * 1025}, "token_ids_logprob"),
    ({"text": ["a", "b"], "return_logprob": [True]}, "return_logprob"),
    ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
    ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
    ({"text": "a", "stream": "yes"}, "stream"),
]

AS_MUCH_AS_MAY_BE: list[dict[str, Any]] = [
    {"sampling_params": {"stop": ["z" * 256] * 256}},
    {"sampling_params": {"stop_token_ids": [5] * 16_384}},
    {"return_logprob": True, "token_ids_logprob": [5] * 1024},
    {"sampling_params": {"min_new_tokens": 128}},
]

BLANK_OR_INERT: list[dict[str, Any]] = [
    {"lora_path": None, "image_data": None, "return_hidden_states": False},
    {"lora_path": [None], "image_data": [], "video_data": [[]]},
    {"log_metrics": True, "session_id": "s", "priority": 3, "routing_key": "k", "extra_key": "e"},
    {"sampling_params": {"json_schema": None, "regex": "", "spaces_between_special_tokens": False}},
    {"sampling_params": {"stream_interval": 4}},
    {"sampling_params": {"temperature": None, "stop": None, "max_new_tokens": None, "n": None}},
    {"return_logprob": None, "logprob_start_len": None, "rid": None, "stream": None},
]


def assert_error(response: requests.Response, status: int, param: str | None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert param is None or param in error["message"] or param in ("text", "input_ids"), error


@pytest.mark.parametrize(
    ("path", "body", "hint"),
    [
        ("/generate", {"text": "a", "max_new_tokens": 8}, "it belongs in sampling_params"),
        ("/generate", {"text": "a", "input_idz": [5]}, "is input_ids meant?"),
        (
            "/generate",
            {"text": "a", "sampling_params": {"temprature": 1}},
            "is sampling_params.temperature meant?",
        ),
        ("/v1/completions", {"prompt": "a", "max_token": 8}, "is max_tokens meant?"),
        ("/v1/completions", {"prompt": "a", "echos": True}, "is echo meant?"),
    ],
)
def test_a_mistyped_field_is_guessed_at(server: LiveServer, path: str, body: Any, hint: str) -> None:
    error = server.post(path, body).json()["error"]
    assert error["code"] == "unknown_parameter" and error["message"].endswith(hint)
    far = server.post(path, {"quite_another_thing": 1}).json()["error"]
    assert far["message"] == "unknown field quite_another_thing"


@pytest.mark.parametrize("body", AS_MUCH_AS_MAY_BE)
def test_limits_are_served(server: LiveServer, body: dict[str, Any]) -> None:
    """The inverse of a refusal just beyond them."""
    assert server.generate(text="a", **body)["output_ids"]


def test_an_empty_body_is_said_to_be_empty(server: LiveServer) -> None:
    error = requests.post(server.url + "/generate", data=b"", timeout=10).json()["error"]
    assert error["message"] == "the body is empty: it must be a JSON object"


@pytest.mark.parametrize("body", BAD_JSON, ids=range(len(BAD_JSON)))
def test_malformed_bodies(server: LiveServer, body: bytes) -> None:
    assert_error(requests.post(server.url + "/generate", data=body, timeout=10), 400, None)


@pytest.mark.parametrize(
    ("body", "param"), BAD_FIELDS, ids=[f"{i}-{p}" for i, (_, p) in enumerate(BAD_FIELDS)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_fields_are_named(server: LiveServer, body: dict[str, Any], param: str, stream: bool) -> None:
    body = body if "stream" in body else body | {"stream": stream}
    assert_error(server.post("/generate", body), 400, param)


@pytest.mark.parametrize("fields", BLANK_OR_INERT)
def test_blank_and_inert_fields_change_nothing(server: LiveServer, fields: dict[str, Any]) -> None:
    plain = {"temperature": 0.0, "max_new_tokens": 3}
    expected = server.generate(text="the same", sampling_params=plain)
    given = {
        name: value for name, value in (fields.get("sampling_params") or {}).items() if value is not None
    }
    answer = server.generate(**{"text": "the same", **fields, "sampling_params": {**plain, **given}})
    assert answer["output_ids"] == expected["output_ids"]


def test_every_blank_parameter_is_taken(server: LiveServer) -> None:
    server.generate(text="the", sampling_params={"temperature": None, "n": None, "stop": None, "top_k": None})


def test_paths_and_methods(server: LiveServer) -> None:
    assert_error(server.get("/no/such/path"), 404, None)
    response = server.get("/generate")
    assert_error(response, 405, None)
    assert "POST" in response.headers["allow"]


def test_a_body_over_the_limit(server: LiveServer) -> None:
    text = "a" * (1 << 20)
    assert_error(server.post("/generate", {"text": text}), 413, None)


def test_a_body_over_the_limit_of_unknown_length(server: LiveServer) -> None:
    def parts() -> Any:
        for _ in range(40):
            yield b" " * (1 << 16)

    assert_error(requests.post(server.url + "/generate", data=parts(), timeout=10), 413, None)


def test_a_client_that_leaves_within_its_body(server: LiveServer) -> None:
    faults = server.log().count("Traceback")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"text')
    assert server.get("/health").status_code == 200
    assert server.log().count("Traceback") == faults


def test_a_fault_of_the_model_fails_its_own_request(server: LiveServer) -> None:
    params = {"temperature": 0.0, "max_new_tokens": 3}
    response = server.post("/generate", {"input_ids": [FAULT_TOKEN], "sampling_params": params})
    assert response.status_code == 500
    assert "not finite" in response.json()["error"]["message"]
    good, bad = server.generate(input_ids=[[5], [FAULT_TOKEN]], sampling_params=params)
    assert good["output_ids"] == server.generate(input_ids=[5], sampling_params=params)["output_ids"]
    assert bad["meta_info"]["finish_reason"]["type"] == "error"


def test_a_fault_in_a_stream(server: LiveServer) -> None:
    """An error of a prompt alone, as without a stream; of one of several, how that one ended."""
    body = {"sampling_params": {"temperature": 0.0, "max_new_tokens": 3}, "stream": True}
    response = server.post("/generate", body | {"input_ids": [FAULT_TOKEN]})
    assert response.status_code == 500
    assert "not finite" in response.json()["error"]["message"]
    told = server.post("/generate", body | {"input_ids": [[5], [FAULT_TOKEN]]})
    assert told.status_code == 200 and '"error":{' not in told.text
    assert '"type":"error"' in told.text and told.text.endswith("data: [DONE]\n\n")


def test_bad_input_does_not_disturb_a_running_request(server: LiveServer) -> None:
    body = {"text": "the same request", "sampling_params": {"temperature": 0.8, "max_new_tokens": 300}}
    body |= {"return_logprob": True}
    alone = server.generate(**body)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(server.generate(**body)))
    thread.start()
    for bad in BAD_JSON[:6]:
        requests.post(server.url + "/generate", data=bad, timeout=10)
    for fields, _ in BAD_FIELDS[::3]:
        server.post("/generate", fields)
    thread.join()
    assert found[0]["output_ids"] == alone["output_ids"]
    name = "output_token_logprobs"
    assert json.dumps(found[0]["meta_info"][name]) == json.dumps(alone["meta_info"][name])
