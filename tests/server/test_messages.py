"""/v1/messages: blocks, events in Anthropic's order, its errors, and the bits of /generate."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fake_engine import write_checkpoint
from live_server import LiveServer, running
from openai_answers import events

from samebits.server import anthropic_input, responses_input
from samebits.server.anthropic_schema import MessagesFields
from samebits.server.responses_schema import ResponsesFields

PATH = "/v1/messages"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
SAID = f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}\nDone"
SCHEMA = {"type": "object", "properties": {}}
WEATHER = {"name": "weather", "description": "now", "input_schema": SCHEMA}
HI = [{"role": "user", "content": "the same"}]
COLD = {"temperature": 0.8, "seed": 3, "max_tokens": 12}


def message(server: LiveServer, **body: Any) -> dict[str, Any]:
    response = server.post(PATH, {"max_tokens": 200, **body})
    assert response.status_code == 200, response.text
    return dict(response.json())


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_a_text(server: LiveServer) -> None:
    found = message(server, messages=HI, metadata={"user_id": "me"}, **COLD)
    assert (found["type"], found["role"], found["model"]) == ("message", "assistant", "fake")
    assert found["system_fingerprint"] == "fake-fingerprint"
    assert (found["stop_reason"], found["stop_sequence"]) == ("max_tokens", None)
    [block] = found["content"]
    assert block["type"] == "text" and block["text"]
    assert found["usage"]["output_tokens"] == 12
    assert message(server, messages=HI, **COLD)["content"] == [block]
    assert message(server, messages=HI, **COLD | {"seed": 4})["content"] != [block]


def test_the_bits_are_those_of_generate_and_of_chats(server: LiveServer) -> None:
    found = message(server, messages=HI, system="be brief", return_token_ids=True, **COLD)
    facts = found["samebits"]
    answer = server.generate(input_ids=facts["prompt_token_ids"], sampling_params=facts["sampling_params"])
    assert (answer["output_ids"], answer["text"]) == (facts["token_ids"], found["content"][0]["text"])
    messages = [{"role": "system", "content": "be brief"}, *HI]
    chat = server.post(
        "/v1/chat/completions", {"messages": messages, "return_token_ids": True, **COLD}
    ).json()
    assert chat["prompt_token_ids"] == facts["prompt_token_ids"]
    assert chat["choices"][0]["token_ids"] == facts["token_ids"]
    bare = message(server, messages=HI, return_token_ids=True, **COLD)
    assert bare["samebits"]["token_ids"] != facts["token_ids"]


def test_turns_of_one_role_are_one_turn(server: LiveServer) -> None:
    joined = message(server, messages=said("a\nb"), return_token_ids=True, **COLD)
    blocks = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in "ab"]
    for turns in ([*said("a"), *said("b")], [{"role": "user", "content": blocks}]):
        found = message(server, messages=turns, return_token_ids=True, **COLD)
        assert found["samebits"] == joined["samebits"]


@pytest.mark.parametrize("kind", ["user", "assistant", "items"])
def test_many_blocks_take_the_time_of_their_characters(kind: str) -> None:
    """Put together one by one they would be copied 20,000 times: minutes in which nobody else is served."""
    block = {"type": "text", "text": "a" * 2000}
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    started = time.monotonic()
    if kind == "items":
        words = {"role": "assistant", "content": block["text"]}
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        items: list[Any] = [words, call] * 20_000
        chat = responses_input.to_chat(ResponsesFields(input=items))
    else:
        blocks = [block, use] * 20_000 if kind == "assistant" else [block] * 20_000
        turns: list[Any] = [{"role": kind, "content": blocks}, {"role": "user", "content": "a"}]
        chat = anthropic_input.to_chat(MessagesFields(messages=turns))
    assert chat.messages is not None and len(chat.messages[0]["content"]) >= 2000 * 20_000
    assert time.monotonic() - started < 10


def test_thoughts_words_and_calls_are_blocks(parrot: LiveServer) -> None:
    found = message(parrot, messages=said(SAID), tools=[WEATHER])
    thoughts, words, call, rest = found["content"]
    assert (thoughts["type"], thoughts["thinking"]) == ("thinking", "hm")
    assert (words["text"], rest["text"]) == ("Let me see.", "\nDone")
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Zürich"})
    assert found["stop_reason"] == "tool_use"
    ids = parrot.post("/tokenize", {"prompt": "<think>\nhm\n</think>"}).json()["tokens"]
    assert found["usage"]["output_tokens_details"] == {"thinking_tokens": len(ids)}
    told = {"type": "tool_result", "tool_use_id": call["id"], "content": "12 degrees"}
    turns = [
        *said(SAID),
        {
            "role": "assistant",
            "content": [{k: v for k, v in b.items() if v is not None} for b in found["content"]],
        },
        {"role": "user", "content": [told]},
    ]
    last = message(parrot, messages=turns, tools=[WEATHER])
    assert (last["content"][0]["text"], last["stop_reason"]) == ("12 degrees", "end_turn")


@pytest.mark.parametrize("arguments", ['{"a": "cut', r'{"a": "half of a pair: \ud83d"}', '{"a": NaN}'])
def test_an_input_that_is_no_object_is_told_of(parrot: LiveServer, arguments: str) -> None:
    text = '<tool_call>{"name": "f", "arguments": ' + arguments
    found = message(parrot, messages=said(text), tools=[WEATHER])
    [call] = found["content"]
    assert call["input"] == {}
    [warning] = found["samebits"]["warnings"]
    assert call["id"] in warning and arguments in warning


def test_stop_sequences(parrot: LiveServer) -> None:
    text = "a page is storage, a page"
    found = message(parrot, messages=said(text), stop_sequences=["page is"])
    assert (found["content"][0]["text"], found["stop_reason"]) == ("a ", "stop_sequence")
    assert found["stop_sequence"] == "page is"
    other = message(parrot, messages=said(text), stop_sequences=["pages"])
    assert (other["content"][0]["text"], other["stop_reason"]) == (text, "end_turn")


@pytest.mark.parametrize("text", [SAID, "words alone", CALL, "<think>\nnever ends", ""])
@pytest.mark.parametrize("stop", [[], ["hm"], ["city"]])
def test_the_events_build_the_message(parrot: LiveServer, text: str, stop: list[str]) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}], "max_tokens": 200}
    body |= {"tools": [WEATHER], "stop_sequences": stop}
    whole = message(parrot, **body)
    start, *inner, delta, stopped = events(parrot, PATH, **body)
    assert (start["type"], delta["type"], stopped["type"]) == (
        "message_start",
        "message_delta",
        "message_stop",
    )
    built = start["message"]
    assert (built["content"], built["stop_reason"]) == ([], None)
    pieces: list[str] = []
    for event in inner:
        if event["type"] == "content_block_start":
            assert event["index"] == len(built["content"])
            built["content"].append(event["content_block"])
            pieces.append("")
            continue
        assert event["index"] == len(pieces) - 1
        if event["type"] == "content_block_delta":
            [value] = (value for key, value in event["delta"].items() if key != "type")
            pieces[-1] += value
            continue
        block = built["content"][-1]
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(pieces[-1])
            except ValueError:
                block["input"] = {}
        else:
            block["thinking" if block["type"] == "thinking" else "text"] = pieces[-1]
    built |= delta["delta"]
    assert built["content"] == whole["content"]
    for name in ("stop_reason", "stop_sequence"):
        assert built[name] == whole[name]
    cached = {"cache_read_input_tokens", "input_tokens"}
    assert {k: v for k, v in delta["usage"].items() if k not in cached} == {
        k: v for k, v in whole["usage"].items() if k not in cached
    }
    assert delta["samebits"]["sampling_params"] == whole["samebits"]["sampling_params"]


def test_tokens_are_counted_without_an_answer(server: LiveServer) -> None:
    count = server.post(f"{PATH}/count_tokens", {"messages": HI, "system": "be brief"}).json()
    found = message(server, messages=HI, system="be brief", **COLD)
    usage = found["usage"]
    assert count == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
    assert server.post(f"{PATH}/count_tokens", {"messages": HI}).json() != count


def test_thinking_is_told_to_the_template(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, parrot=True)
    path = folder / "tokenizer_config.json"
    template = "{{ '<|start|>' ~ enable_thinking ~ '<|end|>' }}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    with running(folder) as live:
        for thinking, expected in (
            ({"type": "enabled", "budget_tokens": 1024}, "True"),
            ({"type": "adaptive"}, "True"),
            ({"type": "disabled"}, "False"),
        ):
            found = message(live, messages=HI, thinking=thinking)
            assert found["content"][0]["text"] == expected
            assert bool(found["samebits"]["warnings"]) == ("budget_tokens" in thinking)


IMAGE = {"type": "image", "source": {"type": "url", "url": "x"}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
REFUSALS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"max_tokens": None, "messages": HI}, "max_tokens", None),
    ({}, "messages", None),
    ({"messages": []}, "messages", None),
    (
        {"messages": HI, "output_config": {"format": {"type": "json_schema", "schema": {}, "x": 1}}},
        "output_config.format.x",
        "unknown_parameter",
    ),
    (
        {"messages": HI, "output_config": {"format": {"type": "json_schema"}}},
        "output_config.format.schema",
        "invalid_type",
    ),
    ({"messages": [*HI, {"role": "assistant", "content": "The"}]}, "messages", "unsupported_value"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", None),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name", "unknown_parameter"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]", "unsupported_value"),
    (
        {"messages": [{"role": "assistant", "content": [RESULT]}]},
        "messages[0].content[0]",
        "unsupported_value",
    ),
    (
        {"messages": [{"role": "user", "content": [RESULT | {"content": [IMAGE]}]}]},
        "messages[0].content[0].content[0]",
        "unsupported_value",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]}]},
        "messages[0].content[0].input",
        "invalid_type",
    ),
    ({"messages": HI, "system": [IMAGE]}, "system[0]", "unsupported_value"),
    ({"messages": HI, "stop": "a"}, "stop", "unsupported_parameter"),
    ({"messages": HI, "stop_sequences": [""]}, "stop_sequences", None),
    ({"messages": HI, "max_tokens": -1}, "max_tokens", None),
    ({"messages": HI, "n": 2}, "n", "unsupported_parameter"),
    ({"messages": HI, "top_p": 3}, "top_p", None),
    ({"messages": HI, "container": "c"}, "container", "unsupported_parameter"),
    ({"messages": HI, "colour": "red"}, "colour", "unknown_parameter"),
    ({"messages": HI, "thinking": {"type": "maybe"}}, "thinking.type", None),
    (
        {"messages": HI, "thinking": {"type": "enabled", "display": "omitted"}},
        "thinking.display",
        "unsupported_value",
    ),
    ({"messages": HI, "tool_choice": {"type": "maybe"}}, "tool_choice.type", None),
    ({"messages": HI, "tool_choice": {"type": "tool"}}, "tool_choice.name", "invalid_type"),
    (
        {"messages": HI, "tools": [{"type": "web_search_20250305", "name": "w"}]},
        "tools[0]",
        "unsupported_value",
    ),
    ({"messages": HI, "tools": [{"name": "w"}]}, "tools[0].input_schema", "invalid_type"),
    (
        {"messages": HI, "output_config": {"format": {"type": "xml"}}},
        "output_config.format",
        "unsupported_value",
    ),
    (
        {"messages": HI, "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        "context_management",
        "unsupported_parameter",
    ),
    ({"messages": said("word " * 3000)}, "messages", "context_length_exceeded"),
]


@pytest.mark.parametrize(("body", "param", "code"), REFUSALS)
def test_refusals_name_the_field(
    server: LiveServer, body: dict[str, Any], param: str, code: str | None
) -> None:
    for streamed in ({}, {"stream": True}):
        response = server.post(PATH, {"max_tokens": 5} | body | streamed)
        assert response.status_code == 400, response.text
        answer = response.json()
        assert answer["type"] == "error" and answer["request_id"] == response.headers["x-request-id"]
        error = answer["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_edits_that_keep_everything_are_taken(server: LiveServer) -> None:
    kept = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    assert message(server, messages=HI, context_management=kept, **COLD)["content"]


def test_every_error_of_the_route_has_its_shape(server: LiveServer) -> None:
    cases = [
        (server.post(PATH, {"messages": HI, "max_tokens": 5, "model": "gpt-7"}), 404, "not_found_error"),
        (server.post(PATH, data=b"{"), 400, "invalid_request_error"),
        (server.post(PATH, {"messages": said("a" * (1 << 20))}), 413, "request_too_large"),
        (server.get(PATH), 405, "invalid_request_error"),
        (server.post(f"{PATH}/batches", {}), 404, "not_found_error"),
        (server.post(f"{PATH}/count_tokens", {}), 400, "invalid_request_error"),
    ]
    for response, status, kind in cases:
        assert response.status_code == status
        assert (response.json()["type"], response.json()["error"]["type"]) == ("error", kind)


def test_keys(tmp_path: Path) -> None:
    with running(write_checkpoint(tmp_path), api_key=["secret"]) as live:
        body = {"messages": HI, "max_tokens": 3}
        refused = live.post(PATH, body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert live.post(PATH, body, headers={"x-api-key": "wrong"}).status_code == 401
        assert live.post(PATH, body, headers={"x-api-key": "secret"}).status_code == 200
        assert live.post(PATH, body, headers={"Authorization": "Bearer secret"}).status_code == 200
