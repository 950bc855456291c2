"""The routes of a server without a socket: the engine in a thread of this process, requests as function calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Message, Scope

from samebits.client import Reply
from samebits.config import EngineConfig, ModelConfig, ServerConfig
from samebits.engine.async_engine import AsyncEngine
from samebits.engine.build import build_engine
from samebits.engine.service import BuildEngine
from samebits.engine.transport import ThreadTransport
from samebits.errors import ConfigError
from samebits.server.app import create_app
from samebits.server.front import Front, most_samples


class LocalServer:
    """A server that only its own process can ask."""

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    @property
    def fingerprint(self) -> str:
        return self._front.engine.facts.fingerprint

    async def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """What a server would answer. Cancelling it ends the request."""
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"local"), (b"content-type", b"application/json")],
        }
        inbox: list[Message] = [{"type": "http.request", "body": body or b"", "more_body": False}]
        status, headers, parts = 500, {}, []

        async def receive() -> Message:
            if inbox:
                return inbox.pop()
            await asyncio.Event().wait()  # the client never leaves
            raise AssertionError

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers.update({name.decode(): value.decode() for name, value in message["headers"]})
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return Reply(status, headers, b"".join(parts))


@asynccontextmanager
async def local_server(
    model: ModelConfig,
    engine: EngineConfig,
    server: ServerConfig,
    build: BuildEngine = build_engine,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> AsyncGenerator[LocalServer, None]:
    """A `LocalServer` that is ready. Raises what loading the model raises."""
    if engine.data_parallel != 1:
        raise ConfigError("--data-parallel is for samebits serve: start that, and name it with --url")
    made = AsyncEngine(ThreadTransport(model, engine, build), on_progress)
    front = Front(server, made, most_samples(engine))
    app = create_app(front, model, engine)
    try:
        await front.start()
        yield LocalServer(app, front)
    finally:
        await front.engine.shutdown()
