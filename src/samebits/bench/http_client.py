"""A client that costs little, so that the server is what is measured: keep-alive connections that send one request
over and over, and look no closer at an answer than to count it. Loopback only."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
END_OF_HEAD = b"\r\n\r\n"
END_OF_CHUNKS = b"\r\n0\r\n\r\n"
FRAME = b"data: "
DONE = b"data: [DONE]"


@dataclass
class Tally:
    """What came back while it counted."""

    responses: int = 0
    frames: int = 0
    """events of streams, with their end marks"""
    bytes: int = 0


class _Connection(asyncio.Protocol):
    """Sends the request, waits for the whole answer, sends it again."""

    def __init__(self, request: bytes, tally: Tally, failed: asyncio.Future[None]) -> None:
        self._request = request
        self._tally = tally
        self._failed = failed
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._tally.bytes += len(data)
        self._buffer += data
        if not self._is_whole():
            return
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self._fail(bytes(self._buffer[:500]).decode(errors="replace"))
            return
        frames = self._buffer.count(FRAME)
        if frames and DONE not in self._buffer:
            self._fail("a stream without its end mark")
            return
        self._tally.frames += frames
        self._tally.responses += 1
        self._buffer.clear()
        self._transport.write(self._request)

    def _is_whole(self) -> bool:
        if self._buffer.endswith(END_OF_CHUNKS):
            return True
        head = self._buffer.find(END_OF_HEAD)
        if head < 0:
            return False
        at = self._buffer.find(b"content-length: ", 0, head)
        if at < 0:
            return False
        length = int(self._buffer[at + 16 : self._buffer.index(b"\r", at)])
        return len(self._buffer) >= head + len(END_OF_HEAD) + length

    def connection_lost(self, error: Exception | None) -> None:
        """Counting is over, or fails: the load would be less than what it is called."""
        self._fail("closed a connection" if error is None else str(error))

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_exception(RuntimeError(f"the server under measurement: {reason}"))
        self._transport.abort()


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    """A POST as it goes over the wire."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def load(port: int, request: bytes, connections: int, warm_seconds: float, seconds: float) -> Tally:
    """Keep so many connections busy, and count for `seconds` after the warm-up. Raises `RuntimeError` for any answer
    but a whole 200."""
    loop = asyncio.get_running_loop()
    tally, failed = Tally(), loop.create_future()
    transports = []
    try:
        for _ in range(connections):
            transport, _ = await loop.create_connection(
                lambda: _Connection(request, tally, failed), HOST, port
            )
            transports.append(transport)
        await _until(failed, warm_seconds)
        before = Tally(tally.responses, tally.frames, tally.bytes)
        await _until(failed, seconds)
        return Tally(
            tally.responses - before.responses, tally.frames - before.frames, tally.bytes - before.bytes
        )
    finally:
        for transport in transports:
            transport.abort()
        if not failed.done():
            failed.cancel()


async def _until(failed: asyncio.Future[None], seconds: float) -> None:
    await asyncio.wait({failed}, timeout=seconds)
    if failed.done():
        failed.result()
