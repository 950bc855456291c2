"""/v1/chat/completions over real HTTP, with a parrot for a model: it says what the last message says."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import LiveServer
from openai_answers import bits, chat, chat_frames, joined

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
PIECES = st.sampled_from(
    ["<think>", "</think>", CALL, "<tool_call>", "</tool_call>", "words", "\n", " ", "é", "{}", '{"name": 1}']
)


def test_the_shape(parrot: LiveServer) -> None:
    answer = chat(parrot, "the same", model="fake")
    assert set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert (answer["object"], answer["system_fingerprint"]) == ("chat.completion", "fake-fingerprint")
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "the same", "refusal": None}
    assert (choice["finish_reason"], choice["stop_reason"], choice["matched_stop"]) == ("stop", None, 0)
    assert set(answer["usage"]) >= {"prompt_tokens", "completion_tokens", "total_tokens"}


def test_the_same_as_a_completion_of_the_rendered_prompt(server: LiveServer) -> None:
    body = {"temperature": 0.8, "seed": 11, "max_tokens": 9, "n": 2}
    answer = chat(server, "the same bits", **body, logprobs=True, top_logprobs=2, return_token_ids=True)
    ids = server.post("/tokenize", {"messages": [{"role": "user", "content": "the same bits"}]}).json()
    assert answer["prompt_token_ids"] == ids["tokens"]
    completion = server.post("/v1/completions", body | {"prompt": ids["tokens"], "logprobs": 2}).json()
    for choice, other in zip(answer["choices"], completion["choices"], strict=True):
        assert choice["message"]["content"] == other["text"]
        listed = choice["logprobs"]["content"]
        assert [bits(at["logprob"]) for at in listed] == [
            bits(value) for value in other["logprobs"]["token_logprobs"]
        ]
        assert all(len(at["top_logprobs"]) == 2 for at in listed)
        assert b"".join(bytes(at["bytes"]) for at in listed).decode(errors="replace") == other["text"]
    assert answer["choices"][0]["message"] != answer["choices"][1]["message"]
    other_seed = chat(server, "the same bits", **(body | {"seed": 12}))
    assert other_seed["choices"][0]["message"] != answer["choices"][0]["message"]


def test_both_names_of_the_longest_answer(server: LiveServer) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(server, **{name: 3})
        assert answer["usage"]["completion_tokens"] == 3
        assert answer["choices"][0]["finish_reason"] == "length"
    free = chat(server, "Q" * 1900, ignore_eos=True, temperature=0)["usage"]
    assert free["total_tokens"] == 2048, "without one, the answer may fill the context"


def test_messages_of_every_role(server: LiveServer) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    ids = server.post("/tokenize", {"messages": messages}).json()["tokens"]
    text = server.post("/detokenize", {"tokens": ids}).json()["prompt"]
    expected = [("system", "be brief"), ("user", "a\nb"), ("assistant", ""), ("tool", "2")]
    turns = "".join(f"<|start|>{role}\n{content}<|end|>\n" for role, content in expected)
    assert text == turns + "<|start|>assistant\n"
    without = server.post("/tokenize", {"messages": messages, "add_generation_prompt": False}).json()
    assert ids[: without["count"]] == without["tokens"] and without["count"] < len(ids)
    assert chat(server, messages=messages, max_tokens=2)["usage"]["prompt_tokens"] == len(ids)


def test_a_tool_call(parrot: LiveServer) -> None:
    [choice] = chat(parrot, f"Let me see.\n{CALL}", tools=TOOLS)["choices"]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Zürich"}
    [again] = chat(parrot, f"Let me see.\n{CALL}", tools=TOOLS)["choices"]
    assert again == choice, "ids of calls follow from the request"
    [other] = chat(parrot, f"Let me look.\n{CALL}", tools=TOOLS)["choices"]
    assert other["message"]["tool_calls"][0]["id"] != call["id"]
    for plain in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        [choice] = chat(parrot, CALL, **plain)["choices"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", CALL)
    [single] = chat(parrot, CALL + CALL, tools=TOOLS, parallel_tool_calls=False)["choices"]
    assert len(single["message"]["tool_calls"]) == 1


def test_arguments_stream_as_they_come(parrot: LiveServer) -> None:
    deltas = [part["choices"][0]["delta"] for part in chat_frames(parrot, CALL, tools=TOOLS)]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "weather"
    assert len(calls) > 1, "the arguments come in pieces"
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Zürich"}


def test_thoughts(parrot: LiveServer) -> None:
    text = "<think>\nhm\n</think>\n\nyes"
    [choice] = chat(parrot, text)["choices"]
    assert choice["message"]["reasoning_content"] == "hm"
    assert choice["message"]["content"] == "yes"
    [whole] = chat(parrot, text, separate_reasoning=False)["choices"]
    assert whole["message"] == {"role": "assistant", "content": text, "refusal": None}
    [opened] = chat(parrot, "hm</think>yes", chat_template_kwargs={"opened": True})["choices"]
    assert (opened["message"]["reasoning_content"], opened["message"]["content"]) == ("hm", "yes")


@settings(max_examples=25, deadline=None)
@given(
    text=st.lists(PIECES, min_size=1, max_size=6).map("".join),
    tools=st.sampled_from([None, TOOLS]),
    n=st.integers(1, 2),
    logprobs=st.booleans(),
    stop=st.sampled_from([None, "word", ["}", "</think>"]]),
    limit=st.sampled_from([None, 7]),
)
def test_a_stream_joined_is_the_whole(
    parrot: LiveServer, text: str, tools: Any, n: int, logprobs: bool, stop: Any, limit: int | None
) -> None:
    body = {
        "tools": tools,
        "n": n,
        "logprobs": logprobs,
        "stop": stop,
        "max_tokens": limit,
        "return_token_ids": logprobs,
    }
    whole = chat(parrot, text, **body)
    parts = chat_frames(parrot, text, **body, stream_options={"include_usage": True})
    assert (parts[-1]["choices"], parts[-1]["usage"]) == ([], whole["usage"])
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert {part["system_fingerprint"] for part in parts} == {"fake-fingerprint"}
    choices = joined(parts)
    for choice in choices.values():
        assert choice.pop("prompt_token_ids", whole.get("prompt_token_ids")) == whole.get("prompt_token_ids")
    assert [choices[index] for index in range(n)] == whole["choices"]


def test_no_stop_string_leaks_into_a_stream(parrot: LiveServer) -> None:
    parts = chat_frames(parrot, "a page is storage, a page", stop="page is")
    shown = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert shown == "a "


def test_models_and_tokens(server: LiveServer) -> None:
    [model] = server.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("fake", "model", 2048)
    assert model["fingerprint"] == "fake-fingerprint"
    assert server.get("/v1/models/fake").json() == model
    for prefix in ("", "/v1"):
        answer = server.post(prefix + "/tokenize", {"prompt": "the same", "return_token_strs": True}).json()
        assert (answer["token_strs"], answer["count"]) == (["the", " same"], 2)
        back = server.post(prefix + "/detokenize", {"tokens": answer["tokens"]}).json()
        assert back == {"prompt": "the same", "text": "the same"}
    assert server.post("/tokenize", {"prompt": "a", "messages": []}).status_code == 400
    assert server.post("/detokenize", {"tokens": [400]}).status_code == 400
