"""/v1/responses, without a memory: a conversation comes whole with each request, and nothing is stored."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from samebits.generation.samples import Sample
from samebits.server.answer import GrowingAnswer
from samebits.server.front import Front
from samebits.server.http import (
    CLIENT_CLOSED_REQUEST,
    EventStream,
    NotFoundError,
    json_response,
    until_disconnect,
)
from samebits.server.openai_chat_run import prepare_chat
from samebits.server.openai_common import SHARED_NAMES, check_single, field_names, read_request, refuse
from samebits.server.openai_logprobs import TokenNames
from samebits.server.openai_run import parts_of, results_of
from samebits.server.responses_format import ResponseWriter, response_head
from samebits.server.responses_input import LOGPROBS, to_chat
from samebits.server.responses_schema import (
    INERT_RESPONSES_FIELDS,
    REFUSED_RESPONSES_FIELDS,
    ResponsesFields,
)

NAMES = SHARED_NAMES | {
    "text": "input",
    "input_ids": "input",
    "messages": "input",
    "max_new_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format_schema": "text.format.schema",
    "top_logprobs_num": "top_logprobs",
    "tool_parameters": "tools[{}].parameters",
}


class ResponsesRoutes:
    """/v1/responses of one server."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [
            Route("/v1/responses", self.create, methods=["POST"]),
            Route(
                "/v1/responses/{path:path}",
                _stored,
                methods=["GET", "POST", "DELETE"],
                include_in_schema=False,
            ),
        ]

    async def create(self, request: Request) -> Response | ASGIApp:
        """Answer a conversation."""
        front = self._front
        body, common, given = await read_request(
            front, request, ResponsesFields, REFUSED_RESPONSES_FIELDS, INERT_RESPONSES_FIELDS
        )
        check_single(common, given)
        if given.max_tokens is not None:
            refuse("max_tokens", "on this route the limit is max_output_tokens")
        with field_names(NAMES):
            chat = await prepare_chat(front, to_chat(body), common, given, NAMES)
        [sample] = chat.samples
        tokenizer = front.generator.tokenizer
        answer = GrowingAnswer(sample, chat.prompt, tokenizer)
        writer = ResponseWriter(
            response_head(front, body, answer, common.rid or uuid.uuid4().hex),
            answer,
            TokenNames(tokenizer, bool(common.return_tokens_as_token_ids)),
            (body.top_logprobs or 0) if LOGPROBS in (body.include or ()) else None,
            bool(common.return_token_ids),
        )
        if common.stream:
            return EventStream(_frames(front, sample, writer), writer.error_frame)
        work = results_of(front.generator, [sample], NAMES)
        results = await until_disconnect(request.receive, work)
        if results is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return json_response(writer.whole(results[0]))


async def _frames(front: Front, sample: Sample, writer: ResponseWriter) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts_of(front.generator, [sample], NAMES)) as parts:
        async for _, part in parts:
            for frame in writer.frames(part):
                yield frame


async def _stored(request: Request) -> Response:
    message = f"{request.url.path}: this server stores no responses; send the whole conversation as input"
    raise NotFoundError(message, code="unsupported_endpoint")
