"""The asynchronous HTTP client against servers that answer in every way, and that break."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from samebits.client import AsyncClient, RefusedError, Reply, ServerGoneError
from samebits.errors import ConfigError

Result = TypeVar("Result")
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def with_server(answer: list[bytes], use: Callable[[AsyncClient], Awaitable[Result]]) -> tuple[Result, bytes]:
    """(what `use` returns, the request) against a server that writes `answer` piece by piece, then closes."""
    seen = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.readuntil(b"\r\n\r\n"))
        length = [line for line in seen.split(b"\r\n") if line.lower().startswith(b"content-length")]
        if length:
            seen.extend(await reader.readexactly(int(length[0].split(b":")[1])))
        for piece in answer:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async def run() -> Result:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await use(AsyncClient(f"http://127.0.0.1:{port}/base/v1", "key", timeout=10))

    return asyncio.run(run()), bytes(seen)


async def post(client: AsyncClient) -> Reply:
    return await client.request("POST", "/path", b'{"a": 1}')


async def events(client: AsyncClient) -> list[bytes]:
    return [data async for data in client.stream("/path", b"{}")]


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nX-Request-Id: abc\r\n\r\n", b'{"b"', b": 2}"],
        [
            CHUNKED.replace(b"\r\n\r\n", b"\r\nX-Request-Id: abc\r\n\r\n"),
            b'3\r\n{"b\r\n5;x=y\r\n": 2}\r\n0\r\n\r\n',
        ],
        [b'HTTP/1.0 200 OK\r\nx-request-id:abc\r\n\r\n{"b": 2}'],
    ],
)
def test_a_body_framed_in_any_way(answer: list[bytes]) -> None:
    reply, request = with_server(answer, post)
    assert (reply.status, reply.json(), reply.headers["x-request-id"]) == (200, {"b": 2}, "abc")
    assert request.startswith(b"POST /base/path HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Authorization: Bearer key\r\n" in request and request.endswith(b'\r\n\r\n{"a": 1}')


def test_a_stream_in_pieces_of_any_size() -> None:
    frames = b': ping\r\n\r\ndata: {"a": 1}\n\nevent: x\ndata:{"b": 2}\r\n\r\ndata: [DONE]\n\ndata: late\n\n'
    for size in (1, 2, 7, len(frames)):
        pieces = [frames[at : at + size] for at in range(0, len(frames), size)]
        answer = [CHUNKED, *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"]
        assert with_server(answer, events)[0] == [b'{"a": 1}', b'{"b": 2}']


def test_a_refused_stream_has_the_servers_words() -> None:
    with pytest.raises(RefusedError, match="answered 400: no such") as caught:
        with_server([b"HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\nno such"], events)
    assert caught.value.reply.status == 400


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [b"HTTP/1.1 200"],
        [b"SSH-2.0-OpenSSH\r\n\r\n"],
        [b"HTTP/1.1 abc\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nshort"],
        [CHUNKED, b"5\r\nab"],
        [CHUNKED, b"5\r\nabcde\r\n"],
        [CHUNKED, b"nonsense\r\n"],
        [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000],
    ],
)
def test_an_answer_that_breaks_off_is_an_error(answer: list[bytes]) -> None:
    with pytest.raises(ServerGoneError, match="/path"):
        with_server(answer, post)


def test_nobody_there_and_no_url() -> None:
    with pytest.raises(ServerGoneError):
        asyncio.run(AsyncClient("127.0.0.1:9").request("GET", "/"))
    for url in ("", "ftp://host", "http://", "http://host:99999", "host:abc", "host:0", "http://[::1"):
        with pytest.raises(ConfigError, match="looks like"):
            AsyncClient(url)


def test_a_server_that_says_nothing_runs_into_the_limit() -> None:
    async def silent(client: AsyncClient) -> Reply:
        async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(keep, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await AsyncClient(f"127.0.0.1:{port}", timeout=0.2).request("GET", "/path")

    with pytest.raises(ServerGoneError, match="/path"):
        with_server([], silent)
