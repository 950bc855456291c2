"""/v1/responses: items, blocks, events in the official order, and the bits of /generate."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import LiveServer
from openai_answers import bits, events

PATH = "/v1/responses"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
SAID = f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}\nDone"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
COLD = {"temperature": 0.8, "seed": 3, "max_output_tokens": 12}


def respond(server: LiveServer, **body: Any) -> dict[str, Any]:
    response = server.post(PATH, body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def comparable(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs between two of the same request."""
    text = json.dumps({k: v for k, v in response.items() if k not in ("created_at", "completed_at")})
    return dict(json.loads(text.replace(response["id"].removeprefix("resp_"), "ID")))


def test_a_text(server: LiveServer) -> None:
    found = respond(server, input="the same request", metadata={"a": "b"}, user="me", store=True, **COLD)
    assert found["object"] == "response"
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (found["store"], found["metadata"], found["previous_response_id"]) == (False, {"a": "b"}, None)
    assert found["system_fingerprint"] == "fake-fingerprint"
    [item] = found["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "incomplete")
    usage = found["usage"]
    assert (usage["output_tokens"], usage["output_tokens_details"]) == (12, {"reasoning_tokens": 0})
    assert usage["total_tokens"] == usage["input_tokens"] + 12
    again = respond(server, input="the same request", metadata={"a": "b"}, **COLD)
    assert comparable(again) == comparable(found)
    other = respond(server, input="the same request", **COLD | {"seed": 4})
    assert other["output"][0]["content"] != item["content"]


def test_the_bits_are_those_of_generate(server: LiveServer) -> None:
    found = respond(
        server,
        input="the same",
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        return_token_ids=True,
        **COLD,
    )
    facts = found["samebits"]
    answer = server.generate(
        input_ids=facts["prompt_token_ids"],
        sampling_params=facts["sampling_params"],
        return_logprob=True,
        top_logprobs_num=2,
    )
    assert answer["output_ids"] == facts["token_ids"]
    part = found["output"][0]["content"][0]
    assert answer["text"] == part["text"]
    expected = [bits(logprob) for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]]
    assert [bits(entry["logprob"]) for entry in part["logprobs"]] == expected
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    facts["sampling_params"]["sampling_seed"] = 5
    other = server.generate(
        input_ids=facts["prompt_token_ids"], sampling_params=facts["sampling_params"], return_logprob=True
    )
    assert other["output_ids"] != facts["token_ids"]


def test_it_says_what_a_chat_says(server: LiveServer) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the same"},
        {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        {"role": "user", "content": "a\nb"},
    ]
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the same"}]},
        {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]},
    ]
    chat = server.post(
        "/v1/chat/completions",
        {"messages": messages, "temperature": 0.8, "seed": 3, "max_tokens": 12, "return_token_ids": True},
    ).json()
    found = respond(server, input=items, instructions="be brief", return_token_ids=True, **COLD)
    assert found["samebits"]["prompt_token_ids"] == chat["prompt_token_ids"]
    assert found["samebits"]["token_ids"] == chat["choices"][0]["token_ids"]


def test_thoughts_words_and_calls_are_items(parrot: LiveServer) -> None:
    found = respond(parrot, input=SAID, tools=[WEATHER])
    thoughts, words, call, rest = found["output"]
    assert thoughts["type"] == "reasoning" and thoughts["content"][0]["text"] == "hm"
    assert words["content"][0]["text"] == "Let me see."
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    assert json.loads(call["arguments"]) == {"city": "Zürich"}
    assert rest["content"][0]["text"] == "\nDone"
    assert len({item["id"] for item in found["output"]}) == 4
    counts = found["usage"]["output_tokens_details"]["reasoning_tokens"]
    ids = parrot.post("/tokenize", {"prompt": "<think>\nhm\n</think>"}).json()["tokens"]
    assert counts == len(ids)
    body = {"messages": [{"role": "user", "content": SAID}], "tools": [chat_tool(WEATHER)]}
    chat = parrot.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    assert chat["tool_calls"][0]["id"] == call["call_id"]


def chat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


@pytest.mark.parametrize("said", [SAID, "words alone", CALL, "<think>\nnever ends", ""])
def test_the_events_build_the_response(parrot: LiveServer, said: str) -> None:
    body = {"input": [{"role": "user", "content": said}], "tools": [WEATHER]}
    whole = respond(parrot, **body)
    found = events(parrot, PATH, **body)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:2] == ["created", "in_progress"] and kinds[-1] == "completed"
    assert found[0]["response"]["status"] == "in_progress" and found[0]["response"]["output"] == []
    assert comparable(found[-1]["response"]) == comparable(whole)
    items: list[Any] = []
    for event, kind in zip(found, kinds, strict=True):
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append({"item": event["item"], "text": "", "parts": 0})
        elif kind.endswith(".delta"):
            assert event["item_id"] == items[-1]["item"]["id"]
            items[-1]["text"] += event["delta"]
        elif kind.endswith("text.done"):
            assert event["text"] == items[-1]["text"]
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == items[-1]["text"]
        elif kind == "content_part.added":
            items[-1]["parts"] += 1
        elif kind == "content_part.done":
            assert event["part"]["text"] == items[-1]["text"]
        elif kind == "output_item.done":
            items[-1]["done"] = event["item"]
    assert [entry["done"] for entry in items] == found[-1]["response"]["output"]
    for entry in items:
        assert entry["parts"] == (entry["item"]["type"] != "function_call")


def test_logprobs_of_a_stream_are_those_of_the_whole(server: LiveServer) -> None:
    body = {"input": "the same", "include": ["message.output_text.logprobs"], "top_logprobs": 1, **COLD}
    whole = respond(server, **body)["output"][0]["content"][0]["logprobs"]
    deltas = [e for e in events(server, PATH, **body) if e["type"] == "response.output_text.delta"]
    assert json.dumps([p for e in deltas for p in e["logprobs"]]) == json.dumps(whole)
    assert len(whole) == 12


def test_a_conversation_is_sent_back_as_it_came(parrot: LiveServer) -> None:
    first = respond(parrot, input=[{"role": "user", "content": SAID}], tools=[WEATHER])
    call = next(item for item in first["output"] if item["type"] == "function_call")
    told = {"type": "function_call_output", "call_id": call["call_id"], "output": "12 degrees"}
    items = [{"role": "user", "content": SAID}, *first["output"], told]
    last = respond(parrot, input=items, tools=[WEATHER])
    assert last["output"][0]["content"][0]["text"] == "12 degrees"


REFUSALS: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "input", None),
    ({"input": []}, "input", None),
    ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
    ({"input": "a", "conversation": "c"}, "conversation", "unsupported_parameter"),
    ({"input": "a", "background": True}, "background", "unsupported_parameter"),
    ({"input": "a", "max_tokens": 5}, "max_tokens", "unsupported_parameter"),
    ({"input": "a", "max_output_tokens": -5}, "max_output_tokens", None),
    ({"input": "a", "n": 2}, "n", "unsupported_parameter"),
    ({"input": "a", "prompt_logprobs": 1}, "prompt_logprobs", "unsupported_parameter"),
    ({"input": "a", "truncation": "auto"}, "truncation", "unsupported_value"),
    ({"input": "a", "text": {"verbosity": "low"}}, "text.verbosity", "unsupported_value"),
    ({"input": "a", "text": {"x": 1}}, "text", "invalid_type"),
    (
        {"input": "a", "text": {"format": {"type": "json_schema", "schema": {}, "x": 1}}},
        "text.format.x",
        "unknown_parameter",
    ),
    (
        {"input": "a", "text": {"format": {"type": "json_object", "schema": {}}}},
        "text.format.schema",
        "unknown_parameter",
    ),
    ({"input": "a", "include": ["everything"]}, "include", None),
    ({"input": "a", "top_logprobs": 2}, "top_logprobs", None),
    ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0]", "unsupported_value"),
    ({"input": "a", "tools": [{"type": "function"}]}, "tools[0].name", "invalid_type"),
    ({"input": "a", "tool_choice": {"type": "mcp"}}, "tool_choice", "unsupported_value"),
    ({"input": [{"content": "a"}]}, "input[0].type", "unsupported_value"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_value"),
    ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role", None),
    ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "invalid_type"),
    ({"input": [{"role": "user", "content": "a", "mood": 1}]}, "input[0].mood", "unknown_parameter"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0]",
        "unsupported_value",
    ),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]},
        "input[0].arguments",
        None,
    ),
    (
        {"input": [{"type": "function_call_output", "output": "x"}]},
        "input[0].call_id",
        "invalid_type",
    ),
    (
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
        "input[0].encrypted_content",
        "unsupported_value",
    ),
    ({"input": "a", "top_p": 3}, "top_p", None),
    ({"input": "word " * 3000}, "input", "context_length_exceeded"),
    ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "messages", "unsupported_parameter"),
]


@pytest.mark.parametrize(("body", "param", "code"), REFUSALS)
def test_refusals_name_the_field(
    server: LiveServer, body: dict[str, Any], param: str, code: str | None
) -> None:
    for streamed in ({}, {"stream": True}):
        response = server.post(PATH, body | streamed)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_logprobs_beside_tools_are_refused(parrot: LiveServer) -> None:
    body = {"input": "a", "tools": [WEATHER], "include": ["message.output_text.logprobs"]}
    assert parrot.post(PATH, body).json()["error"]["param"] == "include"


def test_nothing_is_stored(server: LiveServer) -> None:
    own = respond(server, input="the", **COLD)["id"]
    for response in (server.get(f"{PATH}/{own}"), server.post(f"{PATH}/{own}/cancel")):
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["code"] == "unsupported_endpoint" and "stores no responses" in error["message"]
