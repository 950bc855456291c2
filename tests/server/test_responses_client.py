"""The `openai` package's responses against a live server: sync, async, streams, tools."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_engine import write_checkpoint
from live_server import LiveServer, engine_process, running
from openai.types.responses import FunctionToolParam

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as found:
        yield found


@pytest.fixture
def talker(parrot: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=parrot.url + "/v1", api_key="any", max_retries=0) as found:
        yield found


def test_a_response_and_its_stream(client: openai.OpenAI) -> None:
    body: Any = {"model": "fake", "input": "the same", "max_output_tokens": 9, "extra_body": {"seed": 5}}
    answer = client.responses.create(**body)
    assert answer.usage is not None and answer.usage.output_tokens == 9
    assert answer.status == "incomplete"
    assert answer.output_text
    text = "".join(
        event.delta
        for event in client.responses.create(**body, stream=True)
        if event.type == "response.output_text.delta"
    )
    assert text == answer.output_text
    other = client.responses.create(**body | {"extra_body": {"seed": 6}})
    assert other.output_text != answer.output_text


def test_errors_are_the_packages_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input="a", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    assert "send the whole conversation" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="gpt-7", input="a")
    assert missing.value.code == "model_not_found"


def test_a_conversation_with_a_tool(talker: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": f"<think>\nhm\n</think>\n{CALL}"}]
    answer = talker.responses.create(model="fake", input=asked, tools=[WEATHER])
    thoughts, call = answer.output
    assert thoughts.type == "reasoning" and thoughts.content is not None
    assert thoughts.content[0].text == "hm"
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Zürich"}
    told = [
        *asked,
        *(item.to_dict() for item in answer.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"},
    ]
    last = talker.responses.create(model="fake", input=told, tools=[WEATHER])
    assert last.output_text == "12 degrees"


def test_the_stream_helper_builds_the_response(talker: openai.OpenAI) -> None:
    said = f"<think>hm</think>Let me see. {CALL}"
    whole = talker.responses.create(model="fake", input=said, tools=[WEATHER])
    with talker.responses.stream(model="fake", input=said, tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        built = stream.get_final_response()
    assert built.status == "completed"
    assert built.output_text == whole.output_text == "Let me see."
    calls = [item for item in built.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Zürich"}]
    assert "response.reasoning_text.delta" in kinds
    assert "response.function_call_arguments.delta" in kinds


def test_async_clients_at_once(server: LiveServer) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> tuple[str, str]:
        body: Any = {"model": "fake", "input": "the same", "max_output_tokens": 12}
        body["extra_body"] = {"seed": number}
        answer = await client.responses.create(**body)
        text = ""
        async for event in await client.responses.create(**body, stream=True):
            text += event.delta if event.type == "response.output_text.delta" else ""
        return answer.output_text, text

    async def everyone() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number % 4) for number in range(12)))

    found = asyncio.run(everyone())
    assert all(whole == streamed for whole, streamed in found)
    assert found[:4] == found[4:8] == found[8:]
    assert len(set(found)) == 4


def test_a_stream_whose_engine_dies_ends_as_failed(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_checkpoint(tmp_path_factory.mktemp("dying"), delay=0.05)
    with running(folder) as live, openai.OpenAI(base_url=live.url + "/v1", api_key="a") as client:
        events = iter(client.responses.create(model="fake", input="the same", stream=True))
        assert next(events).type == "response.created"
        os.kill(engine_process(live), signal.SIGKILL)
        last = list(events)[-1]
        live.stop()  # a server that is killed while it starts an engine leaves it to the next start to tidy up
    assert last.type == "response.failed"
    assert last.response.error is not None and last.response.error.code == "server_error"
