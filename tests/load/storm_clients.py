"""The clients of the storm: steady and slow readers, some that leave, some that send garbage. Loopback only."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
LEAVING, GARBAGE, SLOW = 0.05, 0.02, 0.05
"""shares of the clients"""
SLOW_PAUSE_SECONDS, SLOW_BYTES = 0.002, 512
CLIENT_SECONDS = 900.0
"""none may take longer"""


@dataclass(frozen=True)
class Question:
    """A request that streams its answer, different from all others."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An answer as bits. Two are equal when every token, every logprob's bits and the text are."""

    token_ids: tuple[int, ...]
    logprobs: tuple[bytes, ...]
    """float32, with those of the alternatives"""
    text: str
    finish: str


@dataclass(frozen=True)
class Outcome:
    """What became of a client."""

    kind: str
    """steady, slow, leaving or garbage"""
    question: int
    reply: Reply | None = None
    fault: str = ""
    """what should not have happened"""


def make_questions(count: int, vocabulary: int, seed: int) -> list[Question]:
    """Prompts, lengths and parameters at random, on every streaming route."""
    source = random.Random(seed)
    return [_question(source, vocabulary) for _ in range(count)]


def _question(source: random.Random, vocabulary: int) -> Question:
    ids = [source.randrange(vocabulary - 16) for _ in range(source.randint(2, 40))]
    tokens = source.randint(3, 16)
    sampling = {"temperature": source.choice([0.0, 0.7, 1.2]), "top_p": source.choice([1.0, 0.9])}
    seed = source.getrandbits(64)
    kind = source.random()
    if kind < 0.4:
        body: dict[str, Any] = {"prompt": ids, "logprobs": 2, "max_tokens": tokens}
        body |= {"seed": str(seed), "return_token_ids": True, "ignore_eos": True}
        return Question("/v1/completions", body | sampling | {"stream": True})
    if kind < 0.7:
        messages = [{"role": "user", "content": f"{source.random()} of what?"}]
        body = {"messages": messages, "logprobs": True, "top_logprobs": 2, "max_tokens": tokens}
        body |= {"seed": str(seed), "return_token_ids": True}
        return Question("/v1/chat/completions", body | sampling | {"stream": True})
    sampling |= {"max_new_tokens": tokens, "sampling_seed": str(seed), "ignore_eos": True}
    body = {"input_ids": ids, "sampling_params": sampling, "return_logprob": True, "stream": True}
    # A cumulative stream with many alternatives is too large for any socket's buffer.
    body["top_logprobs_num"] = 20 if kind < 0.75 else 2
    return Question("/generate", body)


async def run_client(port: int, number: int, question: Question, source: random.Random) -> Outcome:
    """Be one of the clients. Never raises: what goes wrong is told in the outcome."""
    draw = source.random()
    kind, client = "steady", ask(port, question)
    if draw < LEAVING:
        client.close()
        kind, client = "leaving", _leave(port, question, source)
    elif draw < LEAVING + GARBAGE:
        client.close()
        kind, client = "garbage", _send_garbage(port, question, source)
    elif draw < LEAVING + GARBAGE + SLOW:
        client.close()
        kind, client = "slow", ask(port, question, slow=True)
    try:
        async with asyncio.timeout(CLIENT_SECONDS):
            return Outcome(kind, number, await client)
    except (OSError, ValueError, EOFError, TimeoutError) as error:
        return Outcome(kind, number, fault=f"{type(error).__name__}: {error}")


async def ask(port: int, question: Question, slow: bool = False) -> Reply | None:
    """The whole answer. Raises `ValueError` for anything but a whole stream."""
    events = [event async for event in _events(port, question, slow)]
    if question.path == "/generate":
        return _native_reply(events)
    return _openai_reply(events)


async def _leave(port: int, question: Question, source: random.Random) -> None:
    """Go at a random moment: within the request, before the answer, or after some of it."""
    reader, writer = await _connect(port)
    request = _request(question)
    moment = source.random()
    try:
        if moment < 0.2:
            writer.write(request[: source.randrange(1, len(request))])
            await writer.drain()
        else:
            writer.write(request)
            for _ in range(source.randrange(8) if moment < 0.8 else 0):
                if not await reader.readline():
                    break
            await asyncio.sleep(source.random() * 0.2)
    finally:
        if source.random() < 0.5:  # a reset instead of an orderly end
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        writer.transport.abort()


async def _send_garbage(port: int, question: Question, source: random.Random) -> None:
    """Something that is no request of ours. Raises `ValueError` unless it is refused, or the line cut."""
    body = json.dumps(question.body).encode()
    noise = source.randbytes(source.randint(1, 4000))
    head = f"POST {question.path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n".encode()
    request = source.choice(
        [
            noise + b"\r\n\r\n",
            _post(question.path, noise),
            _post(question.path, body[: len(body) // 2]),
            _post(question.path, b"[" * 20_000),
            _post(question.path, body[:-1] + b', "no_such_field": 1}'),
            _post(question.path, body.replace(b'"stream": true', b'"stream": "perhaps"')),
            _post("/v1/" + "x" * 3000, body),
            head + b"Content-Length: -7\r\n\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
            head + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        ]
    )
    reader, writer = await _connect(port)
    try:
        with suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
            status = await asyncio.wait_for(reader.readline(), 60)
            if status and not status.startswith(b"HTTP/1.1 4"):
                raise ValueError(f"garbage was answered with {status!r}")
    except TimeoutError:
        pass  # a request that never ends: the client gives up
    finally:
        writer.transport.abort()


async def _connect(port: int, slow: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not slow:
        return await asyncio.open_connection(HOST, port, limit=1 << 22)
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.setblocking(False)
    await asyncio.get_running_loop().sock_connect(line, (HOST, port))
    return await asyncio.open_connection(sock=line, limit=SLOW_BYTES)


def _post(path: str, content: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _request(question: Question) -> bytes:
    return _post(question.path, json.dumps(question.body).encode())


async def _events(port: int, question: Question, slow: bool) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream, the end mark of which must be there."""
    reader, writer = await _connect(port, slow)
    try:
        writer.write(_request(question))
        data = bytearray()
        while part := await reader.read(SLOW_BYTES if slow else 1 << 16):
            data += part
            if slow:
                await asyncio.sleep(SLOW_PAUSE_SECONDS)
    finally:
        writer.transport.abort()
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"answered with {(head + rest)[:300]!r}")
    frames = _unchunked(rest).decode().split("\n\n")
    if frames[-2:] != ["data: [DONE]", ""]:
        raise ValueError("the stream broke off")
    for frame in frames[:-2]:
        event = json.loads(frame.removeprefix("data: "))
        if "error" in event:
            raise ValueError(f"the stream failed: {event['error']['message']}")
        yield event


def _unchunked(data: bytes) -> bytes:
    """The content of a chunked body, which must be whole."""
    parts, at = [], 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def _float_bits(values: list[float]) -> bytes:
    """float32 values; one that is none raises `ValueError`."""
    packed = struct.pack(f"<{len(values)}f", *values)
    if list(struct.unpack(f"<{len(values)}f", packed)) != values:
        raise ValueError("a logprob is no float32 value")
    return packed


def _native_reply(events: list[dict[str, Any]]) -> Reply:
    """Of a cumulative stream: its last event, which all others must be beginnings of."""
    last = events[-1]
    if not all(last["text"].startswith(event["text"]) for event in events):
        raise ValueError("a cumulative stream took back what it had said")
    meta = last["meta_info"]
    rows = zip(meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True)
    logprobs = [_float_bits([own[0], *(entry[0] for entry in top)]) for own, top in rows]
    return Reply(tuple(last["output_ids"]), tuple(logprobs), last["text"], meta["finish_reason"]["type"])


def _openai_reply(events: list[dict[str, Any]]) -> Reply:
    token_ids: list[int] = []
    logprobs: list[bytes] = []
    text, finish = "", ""
    for choice in (choice for event in events for choice in event["choices"]):
        token_ids += choice.get("token_ids") or []
        text += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        finish = choice["finish_reason"] or finish
        found = choice["logprobs"] or {}
        for entry in found.get("content", ()):
            logprobs.append(_float_bits([entry["logprob"], *(at["logprob"] for at in entry["top_logprobs"])]))
        for own, top in zip(found.get("token_logprobs", ()), found.get("top_logprobs", ()), strict=True):
            logprobs.append(_float_bits([own, *top.values()]))
    return Reply(tuple(token_ids), tuple(logprobs), text, finish)
