"""An answer that is sent back is the same turn on every route that takes chats."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from live_server import LiveServer

from samebits.server import anthropic_input, responses_input
from samebits.server.anthropic_schema import MessagesFields
from samebits.server.openai_messages import template_messages
from samebits.server.openai_schema import ChatFields
from samebits.server.responses_schema import ResponsesFields

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
PARAMETERS = {"type": "object", "properties": {}}


def turn(chat: ChatFields) -> list[dict[str, Any]]:
    """What a template reads of a conversation, but for the ids of calls."""
    messages = template_messages(chat.messages)
    for message in messages:
        for call in message.get("tool_calls", ()):
            del call["id"]
    return messages


@pytest.mark.parametrize(
    "said",
    [
        f"<think>hm</think>See.\n{CALL}",
        f"See.\n{CALL}\nDone {CALL} and more",
        f"{CALL}{CALL}then",
        f"{CALL} then\nnot",
        "words alone",
    ],
)
def test_an_answer_is_one_turn(parrot: LiveServer, said: str) -> None:
    asked = [{"role": "user", "content": said}]
    function = {"name": "weather", "parameters": PARAMETERS}
    body = {"messages": asked, "tools": [{"type": "function", "function": function}]}
    answer = parrot.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    expected = turn(ChatFields(messages=[answer]))

    body = {"input": asked, "tools": [{"type": "function", **function}]}
    items = parrot.post("/v1/responses", body).json()["output"]
    response = msgspec.convert({"input": items}, ResponsesFields)
    assert turn(responses_input.to_chat(response)) == expected

    body = {"messages": asked, "max_tokens": 500, "tools": [{"name": "weather", "input_schema": PARAMETERS}]}
    content = parrot.post("/v1/messages", body).json()["content"]
    message = MessagesFields(messages=[{"role": "assistant", "content": content}, *asked])
    assert turn(anthropic_input.to_chat(message))[:-1] == expected


def test_what_was_said_in_two_turns_stays_so() -> None:
    """The inverse: only a call joins words."""
    words = [{"role": "assistant", "content": text} for text in ("one", "two")]
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    told = {"type": "function_call_output", "call_id": "c", "output": "3"}
    for items, texts in (
        (words, ["one", "two"]),
        ([words[0], call, words[1]], ["onetwo"]),
        ([words[0], call, told, words[1]], ["one", "3", "two"]),
    ):
        found = turn(responses_input.to_chat(ResponsesFields(input=items)))
        assert [message["content"] for message in found] == texts
    blocks = [{"type": "text", "text": text} for text in ("one", "two")]
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    for content, text in ((blocks, "one\ntwo"), ([blocks[0], use, blocks[1]], "onetwo")):
        body = MessagesFields(
            messages=[{"role": "assistant", "content": content}, {"role": "user", "content": "a"}]
        )
        assert turn(anthropic_input.to_chat(body))[0]["content"] == text
