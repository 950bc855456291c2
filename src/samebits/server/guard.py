"""What every request passes before its route, whichever API that belongs to:

a request id, a log line, metrics -> CORS -> API key -> limit on requests in flight -> the application
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samebits.config import ServerConfig, flag_name
from samebits.engine.logs import request_id
from samebits.errors import ConfigError
from samebits.server.front import Front
from samebits.server.http import CLIENT_CLOSED_REQUEST, RETRY_AFTER_SECONDS, error_body, error_reply
from samebits.server.keys import Keys, load_keys
from samebits.server.metrics import ServerMetrics
from samebits.server.page_routes import PAGE_PATHS
from samebits.server.tracing import Tracing

HEALTH_PATHS = frozenset({"/health", "/ready"})
"""need no key and are never too many: a supervisor has to reach them"""
QUIET_PATHS = HEALTH_PATHS | {"/metrics"}
"""asked for every few seconds: logged only at `debug`, and outside of the limit"""
REQUEST_ID_HEADER = b"x-request-id"
WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
OTHER = "other"
"""stands in metrics for the methods and paths that clients make up"""

log = logging.getLogger("samebits.server.requests")


def guarded(app: Starlette, front: Front) -> ASGIApp:
    """`app` behind everything that the settings of `front` ask for. Raises `ConfigError` naming a bad one."""
    config, metrics = front.config, front.metrics
    for name in ("max_in_flight", "max_body_mib"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{flag_name(name)} must be at least 1, got {getattr(config, name)}")
    for name in ("engine_restarts", "default_deadline_seconds", "drain_seconds"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"{flag_name(name)} must not be negative, got {getattr(config, name):g}")
    inner: ASGIApp = LimitInFlight(app, metrics, config.max_in_flight)
    if keys := load_keys(config):
        inner = RequireKey(inner, keys, HEALTH_PATHS | (PAGE_PATHS if config.page else frozenset()))
    if config.cors_origins:
        inner = _with_cors(inner, config)
    return Observe(inner, metrics, route_namer(app), front.tracing)


class Observe:
    """Gives a request its id, counts it, and writes its log line."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServerMetrics,
        name_route: Callable[[Scope], str],
        tracing: Tracing | None,
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._metrics = metrics
        self._name_route = name_route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = _id_of(scope)
        request_id.set(name)  # this task is the request's own
        started = time.perf_counter()
        status = CLIENT_CLOSED_REQUEST
        span = (
            self._tracing.begin(scope, name) if self._tracing and scope["path"] not in QUIET_PATHS else None
        )

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (REQUEST_ID_HEADER, name.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # the client has its 500 already, or a stream that breaks off
            status = 500
            log.exception("%s %s raised", scope["method"], _shown_path(scope))
        finally:
            method = scope["method"] if scope["method"] in METHODS else OTHER
            route = self._name_route(scope)
            self._metrics.http_requests[method, route, str(status)] += 1
            if self._tracing and span is not None:
                self._tracing.end(span, method, route, status)
            _log_request(scope, status, time.perf_counter() - started)


class RequireKey:
    """Refuses requests without a key with 401, but for the open paths."""

    def __init__(self, app: ASGIApp, keys: Keys, open_paths: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in self._open_paths or self._keys.admit(scope["headers"]):
            await self._app(scope, receive, send)
            return
        message = "this server needs an API key, as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        body = error_body(message, "invalid_request_error", code="invalid_api_key")
        await error_reply(scope, 401, body, {"WWW-Authenticate": "Bearer"})(scope, receive, send)


class LimitInFlight:
    """Counts the requests being answered, and refuses more than `most` with 503."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, most: int) -> None:
        self._app = app
        self._metrics = metrics
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in QUIET_PATHS:
            await self._app(scope, receive, send)
        elif self._metrics.in_flight >= self._most:
            message = f"{self._most} requests are being answered (--max-in-flight); come back later"
            body = error_body(message, "overloaded_error", code="too_many_in_flight")
            await error_reply(scope, 503, body, {"Retry-After": RETRY_AFTER_SECONDS})(scope, receive, send)
        else:
            self._metrics.in_flight += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._metrics.in_flight -= 1


def route_namer(app: Starlette) -> Callable[[Scope], str]:
    """A function that names the route which served a scope; `other` where none did."""
    by_endpoint: dict[Any, str] = {r.endpoint: r.path for r in app.routes if isinstance(r, Route)}
    paths = {r.path for r in app.routes if isinstance(r, Route)}

    def name(scope: Scope) -> str:
        return scope["path"] if scope["path"] in paths else by_endpoint.get(scope.get("endpoint"), OTHER)

    return name


def _with_cors(app: ASGIApp, config: ServerConfig) -> ASGIApp:
    for origin in config.cors_origins:
        parts = urlsplit(origin)
        plain = f"{parts.scheme}://{parts.netloc}" == origin and parts.scheme in ("http", "https")
        if origin != "*" and not (plain and parts.netloc):
            raise ConfigError(
                f"--cors-origins takes origins such as https://example.org, or *, got {origin!r}"
            )
    return CORSMiddleware(
        app,
        allow_origins=config.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("X-Request-Id", "Retry-After"),
    )


def _id_of(scope: Scope) -> str:
    """The id that the client gave, where it is well-formed, else a new one."""
    for header, value in scope["headers"]:
        if header == REQUEST_ID_HEADER:
            text = value.decode("latin-1")
            if WELL_FORMED_ID.fullmatch(text):
                return str(text)
    return secrets.token_hex(16)


def _shown_path(scope: Scope) -> str:
    """The path as it came over the wire, where nothing can break a line. Without the query."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.partition(b"?")[0].decode("ascii", "backslashreplace")


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
    if not log.isEnabledFor(level):
        return
    method, path = scope["method"], _shown_path(scope)
    fields = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
    log.log(level, "%s %s %d in %.3f s", method, path, status, seconds, extra={"fields": fields})
