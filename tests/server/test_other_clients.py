"""Programs that people already have, against a live server: litellm, LangChain's chat class, curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LiveServer

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
USER = [{"role": "user", "content": "the same request"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NEEDS = "the package is not installed (make clients)"


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """One event loop for all: these packages keep their async connections."""
    with asyncio.Runner() as runner:
        yield runner


class TestLitellm:
    @pytest.fixture
    def litellm(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        # It would fetch a price list over the network at import.
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        return pytest.importorskip("litellm", reason=NEEDS)

    @staticmethod
    def settings(server: LiveServer, **more: Any) -> dict[str, Any]:
        url = server.url + "/v1"
        return {"model": "openai/fake", "api_base": url, "api_key": "any", "num_retries": 0, **more}

    def test_whole_stream_and_async(self, litellm: Any, server: LiveServer, loop: asyncio.Runner) -> None:
        body = self.settings(server, messages=USER, max_tokens=9, seed=5, extra_body={"top_k": 20})
        answer = litellm.completion(**body).choices[0].message.content
        parts = litellm.completion(**body, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == answer
        again = loop.run(litellm.acompletion(**body))
        assert again.choices[0].message.content == answer
        assert litellm.completion(**body | {"seed": 6}).choices[0].message.content != answer

    def test_tools(self, litellm: Any, parrot: LiveServer) -> None:
        asked = [{"role": "user", "content": CALL}]
        body = self.settings(parrot, tools=[WEATHER])
        message = litellm.completion(messages=asked, **body).choices[0].message
        [call] = message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Zürich"}
        told = [
            *asked,
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"},
        ]
        assert litellm.completion(messages=told, **body).choices[0].message.content == "12 degrees"

    def test_messages_and_responses(self, litellm: Any, server: LiveServer) -> None:
        body = {"api_key": "any", "messages": USER, "max_tokens": 20, "temperature": 0.0}
        claude = litellm.completion(model="anthropic/fake", api_base=server.url, **body)
        chat = litellm.completion(model="openai/fake", api_base=server.url + "/v1", **body)
        assert claude.choices[0].message.content == chat.choices[0].message.content
        settings = self.settings(server, input=USER[0]["content"], max_output_tokens=20, temperature=0.0)
        found = litellm.responses(**settings)
        assert found.output[0].content[0].text == chat.choices[0].message.content

    def test_an_error_is_its_own(self, litellm: Any, server: LiveServer) -> None:
        with pytest.raises(litellm.BadRequestError, match="top_p"):
            litellm.completion(**self.settings(server, messages=USER, top_p=3))


class TestLangChain:
    @pytest.fixture
    def chat(self) -> Any:
        return pytest.importorskip("langchain_openai", reason=NEEDS).ChatOpenAI

    @staticmethod
    def settings(server: LiveServer, **more: Any) -> dict[str, Any]:
        url = server.url + "/v1"
        return {"model": "fake", "base_url": url, "api_key": "any", "max_retries": 0, **more}

    @pytest.mark.parametrize("responses", [False, True])
    def test_invoke_stream_and_async(
        self, chat: Any, server: LiveServer, loop: asyncio.Runner, responses: bool
    ) -> None:
        limit = {"max_tokens": 9, "use_responses_api": responses, "temperature": 0.0}
        model = chat(**self.settings(server, **limit))
        answer = model.invoke("the same request")
        assert answer.text
        assert answer.usage_metadata["output_tokens"] == 9
        assert "".join(part.text for part in model.stream("the same request")) == answer.text
        assert loop.run(model.ainvoke("the same request")).text == answer.text
        assert model.invoke("another").text != answer.text
        if not responses:
            assert answer.response_metadata["system_fingerprint"] == "fake-fingerprint"

    @pytest.mark.parametrize("responses", [False, True])
    def test_bind_tools(self, chat: Any, parrot: LiveServer, responses: bool) -> None:
        from langchain_core.messages import HumanMessage, ToolMessage

        model = chat(**self.settings(parrot, use_responses_api=responses)).bind_tools([WEATHER])
        asked = [HumanMessage(CALL)]
        answer = model.invoke(asked)
        [call] = answer.tool_calls
        assert (call["name"], call["args"]) == ("weather", {"city": "Zürich"})
        last = model.invoke([*asked, answer, ToolMessage("12 degrees", tool_call_id=call["id"])])
        assert last.text == "12 degrees"
        streamed = None
        for part in model.stream(asked):
            streamed = part if streamed is None else streamed + part
        assert streamed is not None
        assert [(c["name"], c["args"], c["id"]) for c in streamed.tool_calls] == [
            ("weather", {"city": "Zürich"}, call["id"])
        ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
class TestCurl:
    @staticmethod
    def curl(server: LiveServer, path: str, *arguments: str) -> str:
        command = ["curl", "--silent", "--show-error", "--max-time", "30", server.url + path, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/generate", {"text": "the same", "sampling_params": {"max_new_tokens": 5}}),
            ("/v1/completions", {"prompt": "the same", "max_tokens": 5}),
            ("/v1/chat/completions", {"messages": USER, "max_tokens": 5}),
            ("/v1/responses", {"input": "the same", "max_output_tokens": 16}),
            ("/v1/messages", {"messages": USER, "max_tokens": 5}),
        ],
    )
    def test_a_body_without_a_content_type(self, server: LiveServer, path: str, body: Any) -> None:
        """`curl -d` says that it sends a form; the body is read as JSON all the same."""
        answer = json.loads(self.curl(server, path, "-d", json.dumps(body)))
        assert "error" not in answer or answer["error"] is None, answer
        shown = self.curl(server, path, "--no-buffer", "-d", json.dumps(body | {"stream": True}))
        frames = [line for line in shown.splitlines() if line.startswith("data: ")]
        assert len(frames) > 2
        assert shown.endswith("\n\n")

    def test_models_and_a_header(self, server: LiveServer) -> None:
        assert json.loads(self.curl(server, "/v1/models"))["data"][0]["id"] == "fake"
        shown = self.curl(server, "/v1/models", "--include", "-H", "X-Request-Id: mine")
        assert "x-request-id: mine" in shown.lower()
