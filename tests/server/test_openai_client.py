"""The `openai` package against a live server: what people's programs really do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import openai
import pytest
from live_server import LiveServer
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "the same request"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as found:
        yield found


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "samebits"


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="fake", prompt=["the", "same"], max_tokens=5, temperature=0.5, seed=1, logprobs=1, n=2
    )
    again = client.completions.create(
        model="fake", prompt=["the", "same"], max_tokens=5, temperature=0.5, seed=1, logprobs=1, n=2
    )
    assert answer.system_fingerprint == "fake-fingerprint"
    assert [choice.text for choice in answer.choices] == [choice.text for choice in again.choices]
    assert len({choice.text for choice in answer.choices}) == 4
    assert answer.usage is not None and answer.usage.completion_tokens == 20
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and len(logprobs.token_logprobs or ()) == 5
    chunks = list(
        client.completions.create(
            model="fake", prompt="the", max_tokens=5, temperature=0.5, seed=1, stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    other = client.completions.create(model="fake", prompt="the", max_tokens=5, temperature=0.5, seed=2)
    assert other.choices[0].text != answer.choices[0].text


def test_chats_and_their_streams(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake",
        messages=USER,
        max_completion_tokens=8,
        seed=3,
        logprobs=True,
        top_logprobs=1,
        user="me",
        store=False,
        extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True},
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 8
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and len(logprobs.content or ()) == 8
    text, usage = "", None
    for chunk in client.chat.completions.create(
        model="fake",
        messages=USER,
        max_tokens=8,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True},
    ):
        assert chunk.system_fingerprint == "fake-fingerprint"
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage
    assert text == answer.choices[0].message.content
    assert usage is not None and usage.completion_tokens == 8


def test_errors_are_the_packages_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=USER, top_p=3)
    assert (caught.value.param, caught.value.type) == ("top_p", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-7", messages=USER)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="fake", input="a")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="fake", messages=USER, response_format={"type": "json_object"}, extra_body={"regex": "a"}
        )
    assert refused.value.param == "regex"


def test_a_conversation_with_a_tool(parrot: LiveServer) -> None:
    with openai.OpenAI(base_url=parrot.url + "/v1", api_key="any", max_retries=0) as client:
        asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": CALL}]
        answer = client.chat.completions.create(model="fake", messages=asked, tools=[WEATHER])
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls is not None
        [call] = message.tool_calls
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": "Zürich"}
        told: list[ChatCompletionMessageParam] = [
            *asked,
            message.to_dict(),  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"},
        ]
        last = client.chat.completions.create(model="fake", messages=told, tools=[WEATHER])
        assert last.choices[0].message.content == "12 degrees"
        with client.chat.completions.stream(model="fake", messages=asked, tools=[WEATHER]) as stream:
            streamed = stream.get_final_completion().choices[0].message
        assert streamed.tool_calls is not None
        assert streamed.tool_calls[0].id == call.id
        assert streamed.tool_calls[0].function.arguments == call.function.arguments


def test_async_clients_at_once(server: LiveServer) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> tuple[str | None, str]:
        body = {"model": "fake", "messages": USER, "max_tokens": 12, "seed": number}
        answer = await client.chat.completions.create(**body)  # type: ignore[call-overload]
        text = ""
        async for chunk in await client.chat.completions.create(**body, stream=True):  # type: ignore[call-overload]
            text += chunk.choices[0].delta.content or ""
        return answer.choices[0].message.content, text

    async def everyone() -> list[tuple[str | None, str]]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number % 4) for number in range(12)))

    found = asyncio.run(everyone())
    assert all(whole == streamed for whole, streamed in found)
    assert found[:4] == found[4:8] == found[8:]
    assert len(set(found)) == 4
