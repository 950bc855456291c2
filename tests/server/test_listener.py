"""The socket that a server listens on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from samebits.errors import ConfigError
from samebits.server.lifecycle import bind

LOCAL = "127.0.0.1"


def sends_at_once(listener: socket.socket) -> bool:
    """Whether asyncio's server over a listener sends what it is given without waiting for acknowledgements."""

    async def ask() -> bool:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            found.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(accepted, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            known = await found
            writer.close()
        return known != 0

    return asyncio.run(ask())


def test_answers_are_sent_at_once() -> None:
    assert sends_at_once(bind(LOCAL, 0))


def test_a_listener_that_names_no_protocol_waits() -> None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((LOCAL, 0))
    listener.setblocking(False)
    assert not sends_at_once(listener)


def test_a_taken_port_is_named() -> None:
    with bind(LOCAL, 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on {LOCAL}:{port}: the port is taken"):
            bind(LOCAL, port)
