"""What every route shares: reading a body, answering with exact JSON, errors in one shape, and noticing that
the client is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from samebits.engine.logs import request_id
from samebits.engine.validate import QueueFullError
from samebits.errors import DeadlineError, EngineError, RequestError
from samebits.generation.samples import SampleOutput

Result = TypeVar("Result")
RETRY_AFTER_SECONDS = "1"
CLIENT_CLOSED_REQUEST = 499

log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """The server takes no requests now; the message says why."""


class NotFoundError(RequestError):
    """A request for something that this server does not have."""


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in which every float is the shortest text that reads back as the same double."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


ANTHROPIC_PATHS = "/v1/messages"
ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """An error in Anthropic's shape; OpenAI's `param` and `code` stay in it."""
    kind = ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": body["error"] | {"type": kind}, "request_id": request_id.get()}


def error_reply(
    scope: Scope, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
) -> Response:
    """An error as a response, in the shape of the API that the path belongs to."""
    if scope["path"].startswith(ANTHROPIC_PATHS):
        body = anthropic_error(status, body)
    return json_response(body, status, headers)


def error_parts(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, body, headers) of an error that a route raised."""
    match error:
        case QueueFullError():
            body = error_body(str(error), "overloaded_error", code="queue_full")
            return 503, body, {"Retry-After": RETRY_AFTER_SECONDS}
        case UnavailableError():
            body = error_body(str(error), "overloaded_error", code="unavailable")
            return 503, body, {"Retry-After": RETRY_AFTER_SECONDS}
        case RequestError():
            status = 404 if isinstance(error, NotFoundError) else 400
            body = error_body(str(error), "invalid_request_error", error.field, error.code)
            return status, body, {}
        case DeadlineError():
            body = error_body(str(error), "timeout_error", "deadline_seconds", "deadline_exceeded")
            return 504, body, {"X-Should-Retry": "false"}  # OpenAI's clients would send it twice more
        case EngineError():
            return 500, error_body(str(error), "engine_error"), {}
        case HTTPException():
            kind = "invalid_request_error" if error.status_code < 500 else "server_error"
            return error.status_code, error_body(error.detail, kind), dict(error.headers or {})
        case _:
            return 500, error_body("internal error; the server's log has it", "server_error"), {}


async def error_response(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for everything."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    status, body, headers = error_parts(error)
    if isinstance(error, HTTPException) and status in (404, 405):
        reason = "no such path" if status == 404 else f"{request.method} is not allowed here"
        body = error_body(f"{reason}: {request.url.path}", "invalid_request_error")
    return error_reply(request.scope, status, body, headers)


def check_in_time(results: Iterable[SampleOutput]) -> None:
    """Raise `DeadlineError` when a deadline has ended everything before there was a token of it."""
    message = ""
    for result in results:
        if result.finish is None or result.finish.type != "deadline" or result.token_ids:
            return
        message = result.finish.message
    if message:
        raise DeadlineError(message)


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body. Raises a 413 as soon as it is known to be over `limit` bytes."""
    too_large = HTTPException(413, f"the body is larger than {limit} bytes (--max-body-mib)")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return b"".join(parts)


async def until_disconnect(receive: Receive, work: Awaitable[Result]) -> Result | None:
    """Run `work`; cancel it and return None when the client leaves first. The body must have been read."""
    worker = asyncio.current_task()
    assert worker is not None
    left = False

    async def watch() -> None:
        nonlocal left
        await _disconnected(receive)
        left = True
        worker.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if left and not worker.uncancel():
            log.info("the client left; its request is aborted")
            return None
        raise
    finally:
        watcher.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A response of server-sent events, written as an ASGI application.

    It waits for the first frame before it sends the status, so that a request refused by the engine gets a
    proper error. When the client leaves, `frames` is closed at once, even if no frame was due.
    """

    def __init__(
        self, frames: AsyncGenerator[bytes, None], error_frame: Callable[[Exception], bytes]
    ) -> None:
        self._frames = frames
        self._error_frame = error_frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(receive, self._send_all(scope, receive, send))

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        async with aclosing(self._checked_frames()) as frames:
            async for frame in frames:
                if not started:
                    if isinstance(frame, Exception):  # the status line still can tell
                        await (await error_response(Request(scope), frame))(scope, receive, send)
                        return
                    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    started = True
                body = self._error_frame(frame) if isinstance(frame, Exception) else frame
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _checked_frames(self) -> AsyncGenerator[bytes | Exception, None]:
        """The frames; what they raise comes as the last one, and is not mixed up with what sending raises."""
        async with aclosing(self._frames) as frames:
            try:
                async for frame in frames:
                    yield frame
            except Exception as error:
                if error_parts(error)[0] == 500:
                    log.exception("a stream failed")
                yield error


def event_frame(value: Any) -> bytes:
    """One `data:` frame."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def typed_frame(value: dict[str, Any]) -> bytes:
    """One frame that names its `type` as the event, too."""
    return b"event: " + value["type"].encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"


DONE_FRAME = b"data: [DONE]\n\n"


def json_error_frame(error: Exception) -> bytes:
    """An error in the middle of a stream."""
    return event_frame(error_parts(error)[1])
