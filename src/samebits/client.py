"""An asynchronous HTTP client for JSON and server-sent events: what loads a server without loading this machine.

Standard library only, so that any machine with the package can measure a server. Every request has a connection of
its own.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.parse
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from samebits.errors import ConfigError, EngineError

LARGEST_HEAD = 1 << 16
TRANSPORT_ERRORS = (OSError, EOFError, ValueError, asyncio.LimitOverrunError, TimeoutError)
"""what a peer can do to a connection; a short read is an EOFError, nonsense in the framing a ValueError"""


@dataclass(frozen=True)
class Reply:
    """An answer as a whole."""

    status: int
    headers: dict[str, str]
    """by lower-case name"""
    body: bytes

    def json(self) -> Any:
        """The body as JSON, None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class ServerGoneError(EngineError):
    """Nobody answers, or the connection broke: the request may be sent again."""


class RefusedError(EngineError):
    """The server answered with another status than 200."""

    def __init__(self, message: str, reply: Reply) -> None:
        super().__init__(message)
        self.reply = reply


def split_url(url: str) -> urllib.parse.SplitResult:
    """The parts of a server's address, which may lack `http://`. Raises `ConfigError` for what is none."""
    try:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number or too large, half a bracket
        known = False
    if not known:
        raise ConfigError(f"a URL looks like http://127.0.0.1:30000, got {url!r}")
    return parts


def listed_model(listing: Any) -> dict[str, Any] | None:
    """The first model that /v1/models lists; None where it lists none that has an id."""
    entries = listing.get("data") if isinstance(listing, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    return first if isinstance(first, dict) and isinstance(first.get("id"), str) else None


class AsyncClient:
    """Requests to one server. Raises `ConfigError` for a malformed URL."""

    def __init__(self, url: str, api_key: str = "", timeout: float = 3600.0) -> None:
        parts = split_url(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self._base}"
        self._timeout = timeout
        lines = [f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close", "Accept: */*"]
        if api_key:
            lines.append(f"Authorization: Bearer {api_key}")
        self._headers = "\r\n".join(lines)

    async def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """Send and read the whole answer, whatever its status. Raises `ServerGoneError`."""
        async with self._open(method, path, body) as (status, headers, pieces):
            return Reply(status, headers, b"".join([piece async for piece in pieces]))

    async def probe(self, path: str) -> Any:
        """The JSON answer of a GET; None where the path does not exist or is no JSON. Raises `ServerGoneError`."""
        reply = await self.request("GET", path)
        return reply.json() if reply.status == 200 else None

    async def stream(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event, up to `[DONE]`. Raises `RefusedError` and `ServerGoneError`."""
        async with self._open("POST", path, body) as (status, headers, pieces):
            if status != 200:
                reply = Reply(status, headers, b"".join([piece async for piece in pieces]))
                text = reply.body[:500].decode(errors="replace")
                raise RefusedError(f"{self.url}{path} answered {status}: {text}", reply)
            rest = b""
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    yield data

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, body: bytes | None
    ) -> AsyncGenerator[tuple[int, dict[str, str], AsyncGenerator[bytes, None]], None]:
        """(status, headers, pieces of the body) of one request."""
        writer = None
        try:
            async with asyncio.timeout(self._timeout):
                context = ssl.create_default_context() if self._secure else None
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=context, limit=LARGEST_HEAD
                )
                writer.write(self._head(method, path, body) + (body or b""))
                await writer.drain()
                status, headers = _read_head(await reader.readuntil(b"\r\n\r\n"))
                async with aclosing(_pieces(reader, headers)) as pieces:
                    yield status, headers, pieces
        except TRANSPORT_ERRORS as error:
            raise ServerGoneError(f"{self.url}{path}: {error or type(error).__name__}") from error
        finally:
            if writer is not None:
                writer.close()

    def _head(self, method: str, path: str, body: bytes | None) -> bytes:
        lines = [f"{method} {self._base}{path} HTTP/1.1", self._headers]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode()


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers. Raises ValueError for what is not HTTP."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, status, *_ = first.split(" ", 2)
    if not version.startswith("HTTP/1."):
        raise ValueError("the answer is not HTTP")
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return int(status), {name.strip().lower(): value.strip() for name, value in pairs}


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises EOFError where it ends too early."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        missing = int(headers["content-length"])
        while missing:
            piece = await reader.read(min(missing, LARGEST_HEAD))
            if not piece:
                raise EOFError("the answer ends too early")
            missing -= len(piece)
            yield piece
    else:
        while piece := await reader.read(LARGEST_HEAD):
            yield piece
