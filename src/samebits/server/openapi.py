"""/openapi.json: the routes as an OpenAPI document, made from the routes and from what reads their bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import samebits
from samebits.server import anthropic_schema, openapi_answers, responses_schema
from samebits.server import openai_schema as openai
from samebits.server import schema as native
from samebits.server.http import ANTHROPIC_PATHS, json_response

REFERENCE = "#/components/schemas/"
BLANKS: list[Any] = [None, False, 0, "", [], {}]
SHARED = (openai.SamplingFields, openai.CommonFields)
PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


@dataclass(frozen=True)
class Body:
    """A request's body: the fields of `kinds` together, inert ones, and refused ones, which may only be blank."""

    name: str
    kinds: tuple[type[msgspec.Struct], ...]
    inert: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    needed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    """What one path takes and gives."""

    answer: type[msgspec.Struct] | None
    body: Body | None = None
    streams: bool = False
    lists: bool = False
    """the answer may also be a list"""


def _openai_body(name: str, kind: type[msgspec.Struct], refused: Mapping[str, str], *needed: str) -> Body:
    return Body(name, (*SHARED, kind), openai.INERT_FIELDS, {**openai.REFUSED_FIELDS, **refused}, needed)


def _messages_body(name: str, *needed: str) -> Body:
    refused = {**openai.REFUSED_FIELDS, **anthropic_schema.REFUSED_MESSAGES_FIELDS}
    kinds = (*SHARED, anthropic_schema.MessagesFields)
    return Body(name, kinds, anthropic_schema.INERT_MESSAGES_FIELDS, refused, needed)


TOKENIZE = Operation(openapi_answers.TokensAnswer, Body("TokenizeRequest", (openai.TokenizeFields,)))
DETOKENIZE = Operation(
    openapi_answers.TextAnswer, Body("DetokenizeRequest", (openai.DetokenizeFields,), needed=("tokens",))
)
OPERATIONS: dict[str, Operation] = {
    "/generate": Operation(
        openapi_answers.GenerateAnswer,
        Body("GenerateRequest", (native.NativeRequest,), native.INERT_FIELDS, native.REFUSED_FIELDS),
        streams=True,
        lists=True,
    ),
    "/abort_request": Operation(
        None, Body("AbortRequest", (native.AbortBody,), {"abort_message": "a label"})
    ),
    "/v1/completions": Operation(
        openapi_answers.CompletionAnswer,
        _openai_body(
            "CompletionRequest", openai.CompletionFields, openai.REFUSED_COMPLETION_FIELDS, "prompt"
        ),
        streams=True,
    ),
    "/v1/chat/completions": Operation(
        openapi_answers.ChatAnswer,
        _openai_body("ChatRequest", openai.ChatFields, openai.REFUSED_CHAT_FIELDS, "messages"),
        streams=True,
    ),
    "/v1/responses": Operation(
        openapi_answers.ResponseAnswer,
        Body(
            "ResponseRequest",
            (*SHARED, responses_schema.ResponsesFields),
            responses_schema.INERT_RESPONSES_FIELDS,
            {**openai.REFUSED_FIELDS, **responses_schema.REFUSED_RESPONSES_FIELDS},
            ("input",),
        ),
        streams=True,
    ),
    "/v1/messages": Operation(
        openapi_answers.MessageAnswer,
        _messages_body("MessagesRequest", "messages", "max_tokens"),
        streams=True,
    ),
    "/v1/messages/count_tokens": Operation(
        openapi_answers.TokenCountAnswer, _messages_body("CountTokensRequest", "messages")
    ),
    "/v1/models": Operation(openapi_answers.ModelsAnswer),
    "/v1/models/{name}": Operation(openapi_answers.ModelAnswer),
    "/tokenize": TOKENIZE,
    "/v1/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
    "/v1/detokenize": DETOKENIZE,
}
"""What is known of a path's body and answer; a route that is not here is in the document by its name alone."""


class OpenApiRoutes:
    """/openapi.json of one server."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """`routes`: every other route of the server."""
        self._routes = routes
        self._document: dict[str, Any] | None = None

    def routes(self) -> list[Route]:
        return [Route("/openapi.json", self.show, methods=["GET"])]

    async def show(self, request: Request) -> Response:
        """This document."""
        if self._document is None:
            self._document = document([*self._routes, *self.routes()])
        return json_response(self._document)


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of `routes`, but for those that only say what is not offered."""
    paths: dict[str, Any] = {}
    for route in routes:
        if not route.include_in_schema:
            continue
        path = PARAMETER.sub(r"{\1}", route.path)
        entry = paths.setdefault(path, {})
        for method in sorted((route.methods or set()) - {"HEAD"}):
            entry[method.lower()] = _operation(route, path, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Samebits", "version": samebits.__version__},
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def _operation(route: Route, path: str, method: str) -> dict[str, Any]:
    known = OPERATIONS.get(path, Operation(None))
    said = (getattr(route.endpoint, "__doc__", None) or route.name).strip()
    found: dict[str, Any] = {
        "operationId": f"{method.lower()}_{re.sub(r'[^a-z0-9]+', '_', path.lower()).strip('_') or 'page'}",
        "summary": said.split("\n")[0],
        "responses": _responses(known, path, method),
    }
    names = PARAMETER.findall(route.path)
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if known.body is not None:
        content = {"application/json": {"schema": {"$ref": REFERENCE + known.body.name}}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _responses(known: Operation, path: str, method: str) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "The answer."}
    if known.answer is not None:
        one: dict[str, Any] = {"$ref": REFERENCE + known.answer.__name__}
        shape = {"anyOf": [one, {"type": "array", "items": one}]} if known.lists else one
        good["content"] = {"application/json": {"schema": shape}}
    if known.streams:
        good["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    is_anthropic = path.startswith(ANTHROPIC_PATHS)
    kind = openapi_answers.AnthropicErrorAnswer if is_anthropic else openapi_answers.ErrorAnswer
    shape = {"application/json": {"schema": {"$ref": REFERENCE + kind.__name__}}}
    said = {
        "400": "A request that is refused; `param` names the field.",
        "401": "No key, or a wrong one.",
        "404": "There is no such thing here.",
        "413": "The body is too large.",
        "503": "Not now; Retry-After says when.",
        "504": "The deadline came first.",
    }
    if method == "GET":
        said = {status: text for status, text in said.items() if status in ("401", "404", "503")}
    return {"200": good} | {status: {"description": text, "content": shape} for status, text in said.items()}


def _schemas() -> dict[str, Any]:
    bodies = {known.body.name: known.body for known in OPERATIONS.values() if known.body is not None}
    answers = [
        v
        for v in vars(openapi_answers).values()
        if isinstance(v, type) and v.__module__ == openapi_answers.__name__
    ]
    kinds = list(dict.fromkeys(kind for body in bodies.values() for kind in body.kinds))
    _, schemas = msgspec.json.schema_components([*answers, *kinds], ref_template=REFERENCE + "{name}")
    merged = {name: _body_schema(body, schemas) for name, body in bodies.items()}
    for kind in kinds:
        del schemas[kind.__name__]
    return schemas | merged


def _body_schema(body: Body, schemas: Mapping[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for kind in body.kinds:
        properties |= schemas[kind.__name__]["properties"]
    for name, reason in body.inert.items():
        properties.setdefault(name, {"description": f"Without effect: {reason}."})
    for name, what in body.refused.items():
        properties.setdefault(name, {"description": f"Refused: {what}.", "enum": BLANKS})
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(body.needed)} if body.needed else {})
