"""/v1/messages, in the shape of Anthropic's API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from samebits.errors import RequestError
from samebits.generation.samples import Sample
from samebits.server.answer import GrowingAnswer
from samebits.server.anthropic_format import MessageWriter
from samebits.server.anthropic_input import to_chat
from samebits.server.anthropic_schema import (
    INERT_MESSAGES_FIELDS,
    REFUSED_MESSAGES_FIELDS,
    MessagesFields,
)
from samebits.server.front import Front
from samebits.server.http import (
    CLIENT_CLOSED_REQUEST,
    EventStream,
    NotFoundError,
    json_response,
    until_disconnect,
)
from samebits.server.openai_chat_run import prepare_chat
from samebits.server.openai_common import (
    SHARED_NAMES,
    check_single,
    encode,
    field_names,
    read_request,
    refuse,
)
from samebits.server.openai_prompt import chat_prompt
from samebits.server.openai_run import parts_of, results_of

NAMES = SHARED_NAMES | {
    "text": "messages",
    "input_ids": "messages",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "response_format_schema": "output_config.format.schema",
    "stop": "stop_sequences",
    "tool_parameters": "tools[{}].input_schema",
}


class AnthropicRoutes:
    """Every route in Anthropic's shape."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [
            Route("/v1/messages", self.create, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count_tokens, methods=["POST"]),
            Route("/v1/messages/batches", _no_batches, methods=["GET", "POST"], include_in_schema=False),
        ]

    async def create(self, request: Request) -> Response | ASGIApp:
        """Answer a conversation."""
        front = self._front
        body, common, given = await read_request(
            front, request, MessagesFields, REFUSED_MESSAGES_FIELDS, INERT_MESSAGES_FIELDS
        )
        check_single(common, given)
        if given.max_tokens is None:
            raise RequestError("max_tokens is required: the most tokens of the answer", "max_tokens")
        if given.stop is not None:
            refuse("stop", "its name here is stop_sequences")
        if body.stop_sequences is not None:
            given = msgspec.structs.replace(given, stop=body.stop_sequences)
        with field_names(NAMES):
            chat = await prepare_chat(front, to_chat(body), common, given, NAMES)
        [sample] = chat.samples
        answer = GrowingAnswer(sample, chat.prompt, front.generator.tokenizer)
        writer = MessageWriter(
            common.rid or uuid.uuid4().hex,
            front.model_name,
            front.generator.facts,
            answer,
            bool(common.return_token_ids),
            _warnings(body),
        )
        if common.stream:
            return EventStream(_frames(front, sample, writer), writer.error_frame)
        work = results_of(front.generator, [sample], NAMES)
        results = await until_disconnect(request.receive, work)
        if results is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return json_response(writer.whole(results[0]))

    async def count_tokens(self, request: Request) -> Response:
        """Tokens of a conversation's prompt."""
        front = self._front
        body, common, _ = await read_request(
            front, request, MessagesFields, REFUSED_MESSAGES_FIELDS, INERT_MESSAGES_FIELDS
        )
        with field_names(NAMES):
            prompt = chat_prompt(front, to_chat(body))
            special = bool(common.add_special_tokens)
            ids = await encode(front.generator, prompt.text, special, "messages")
        return json_response({"input_tokens": len(ids)})


def _warnings(body: MessagesFields) -> list[str]:
    if body.thinking is None or body.thinking.budget_tokens is None:
        return []
    return ["thinking.budget_tokens: thoughts have no limit of their own here; max_tokens bounds the answer"]


async def _frames(front: Front, sample: Sample, writer: MessageWriter) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts_of(front.generator, [sample], NAMES)) as parts:
        async for _, part in parts:
            for frame in writer.frames(part):
                yield frame


async def _no_batches(request: Request) -> Response:
    message = f"{request.url.path}: this server does not offer batches over HTTP"
    raise NotFoundError(message, code="unsupported_endpoint")
