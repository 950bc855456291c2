"""The OpenAPI document tells of every route, and of the fields that the code reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer
from starlette.routing import Route

from samebits.server import openai_schema
from samebits.server.openapi import OPERATIONS, document

SOURCE = Path(__file__).parents[2] / "src" / "samebits" / "server"


@pytest.fixture(scope="module")
def found(server: LiveServer) -> dict[str, Any]:
    response = server.get("/openapi.json")
    assert response.status_code == 200
    return dict(response.json())


def resolved(found: dict[str, Any], shape: dict[str, Any]) -> dict[str, Any]:
    name = shape["$ref"].removeprefix("#/components/schemas/")
    return dict(found["components"]["schemas"][name])


def body_of(found: dict[str, Any], path: str) -> dict[str, Any]:
    body = found["paths"][path]["post"]["requestBody"]
    return resolved(found, body["content"]["application/json"]["schema"])


def test_every_route_is_in_it(found: dict[str, Any]) -> None:
    written = set()
    for path in SOURCE.glob("*.py"):
        for route, rest in re.findall(r'Route\(\s*"(/[^"]*)"([^)]*)\)', path.read_text()):
            if "include_in_schema=False" not in rest:
                written.add(re.sub(r"\{(\w+):\w+\}", r"{\1}", route))
    assert len(written) > 15
    assert written - set(found["paths"]) == set()
    assert set(OPERATIONS) <= set(found["paths"])


def test_what_is_not_offered_is_not(found: dict[str, Any]) -> None:
    assert not any("embeddings" in path or "audio" in path for path in found["paths"])


def test_bodies_have_the_fields_that_are_read(found: dict[str, Any]) -> None:
    chat = body_of(found, "/v1/chat/completions")
    names = {
        *openai_schema.SamplingFields.__struct_fields__,
        *openai_schema.CommonFields.__struct_fields__,
        *openai_schema.ChatFields.__struct_fields__,
        *openai_schema.INERT_FIELDS,
        *openai_schema.REFUSED_FIELDS,
        *openai_schema.REFUSED_CHAT_FIELDS,
    }
    assert set(chat["properties"]) == names
    assert chat["additionalProperties"] is False
    assert chat["required"] == ["messages"]
    for path in ("/v1/responses", "/v1/messages", "/v1/completions", "/generate", "/tokenize"):
        assert len(body_of(found, path)["properties"]) > 5


def test_every_reference_leads_somewhere(found: dict[str, Any]) -> None:
    names = set(re.findall(r"#/components/schemas/(\w+)", str(found)))
    assert names == set(found["components"]["schemas"])


def test_errors_have_their_shape(found: dict[str, Any]) -> None:
    for path, kind in (("/v1/messages", "AnthropicErrorAnswer"), ("/v1/responses", "ErrorAnswer")):
        answer = found["paths"][path]["post"]["responses"]["400"]["content"]["application/json"]
        assert answer["schema"]["$ref"].endswith(kind)


def test_a_route_that_nobody_described_is_named() -> None:
    async def endpoint(request: Any) -> Any:
        """Says hello.

        At length."""

    made = document([Route("/hello/{name:path}", endpoint, methods=["GET", "POST"])])
    entry = made["paths"]["/hello/{name}"]
    assert set(entry) == {"get", "post"}
    assert entry["get"]["summary"] == "Says hello."
    assert entry["get"]["parameters"][0]["name"] == "name"
