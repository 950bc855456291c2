"""The `anthropic` package against a live server: sync, async, streams, tools."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LiveServer

anthropic = pytest.importorskip("anthropic", reason="the anthropic package is not installed")

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
WEATHER: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
def client(server: LiveServer) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as found:
        yield found


@pytest.fixture
def talker(parrot: LiveServer) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=parrot.url, api_key="any", max_retries=0) as found:
        yield found


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_message_and_its_stream(client: Any) -> None:
    body: Any = {"model": "fake", "messages": user("the same"), "max_tokens": 9, "extra_body": {"seed": 5}}
    answer = client.messages.create(**body)
    assert (answer.usage.output_tokens, answer.stop_reason) == (9, "max_tokens")
    with client.messages.stream(**body) as stream:
        text = "".join(stream.text_stream)
        built = stream.get_final_message()
    assert text == answer.content[0].text == built.content[0].text
    assert (built.stop_reason, built.usage.output_tokens) == ("max_tokens", 9)
    kinds = [event.type for event in client.messages.create(**body, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    other = client.messages.create(**body | {"extra_body": {"seed": 6}})
    assert other.content[0].text != text
    count = client.messages.count_tokens(model="fake", messages=user("the same"))
    assert count.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


def test_models(client: Any) -> None:
    [model] = client.models.list()
    assert (model.id, model.type, model.display_name) == ("fake", "model", "fake")
    assert client.models.retrieve("fake").created_at == model.created_at


def test_errors_are_the_packages_own(client: Any) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="fake", messages=user("a"), max_tokens=5, extra_body={"top_p": 3})
    assert caught.value.body["error"]["param"] == "top_p"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude-7", messages=user("a"), max_tokens=5)
    with pytest.raises(anthropic.BadRequestError):
        list(client.messages.create(model="fake", messages=[], max_tokens=5, stream=True))


def test_a_conversation_with_a_tool(talker: Any) -> None:
    body: Any = {"model": "fake", "max_tokens": 300, "tools": [WEATHER]}
    asked = user(f"<think>\nhm\n</think>\n{CALL}")
    answer = talker.messages.create(messages=asked, **body)
    thoughts, call = answer.content
    assert (thoughts.type, thoughts.thinking) == ("thinking", "hm")
    assert (answer.stop_reason, call.name, call.input) == ("tool_use", "weather", {"city": "Zürich"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "12 degrees"}
    told = [*asked, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    last = talker.messages.create(messages=told, **body)
    assert (last.content[0].text, last.stop_reason) == ("12 degrees", "end_turn")
    with talker.messages.stream(messages=asked, **body) as stream:
        built = stream.get_final_message()
    assert built.content[0].thinking == "hm"
    assert (built.content[1].id, built.content[1].input) == (call.id, call.input)
    assert built.stop_reason == "tool_use"


def test_async_clients_at_once(server: LiveServer) -> None:
    async def one(client: Any, number: int) -> tuple[str, str]:
        body: Any = {"model": "fake", "messages": user("the same"), "max_tokens": 12}
        body["extra_body"] = {"seed": number}
        answer = await client.messages.create(**body)
        text = ""
        async with client.messages.stream(**body) as stream:
            async for piece in stream.text_stream:
                text += piece
        return answer.content[0].text, text

    async def everyone() -> list[tuple[str, str]]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="any", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number % 4) for number in range(12)))

    found = asyncio.run(everyone())
    assert all(whole == streamed for whole, streamed in found)
    assert found[:4] == found[4:8] == found[8:]
    assert len(set(found)) == 4
