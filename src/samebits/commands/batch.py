"""Files in OpenAI's batch format: requests in, one answer a line out, and what an interrupted run left behind.

The file of answers only grows. An answer is one write, so a killed run leaves whole lines and at most one partial
line at the end, which the next run cuts off. `id` of an answer follows from its request, so that an answer is known to
belong to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samebits.client import Reply
from samebits.errors import ConfigError

SUCCESS = 200
URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


@dataclass(frozen=True)
class BatchRequest:
    """A line of the batch. `fault` says why it cannot be sent, which is its answer then."""

    custom_id: str
    url: str
    body: dict[str, Any]
    fault: str = ""

    @property
    def id(self) -> str:
        """Follows from what is asked."""
        asked = json.dumps([self.custom_id, self.url, self.body], sort_keys=True).encode()
        return "batch_req_" + hashlib.sha256(asked).hexdigest()[:24]


def read_batch(path: str) -> list[BatchRequest]:
    """The requests of a file, or of standard input for `-`. Raises `ConfigError` naming the line: a line that is no
    request, or whose `custom_id` is missing or not its own, could not be told from others in the answers."""
    try:
        lines = sys.stdin.readlines() if path == "-" else Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the batch {path}: {getattr(error, 'strerror', error)}") from error
    requests: list[BatchRequest] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        request = _read_request(line, f"{path}:{number}")
        if request.custom_id in seen:
            raise ConfigError(
                f"{path}:{number}: custom_id {request.custom_id!r} is taken by line {seen[request.custom_id]}"
            )
        seen[request.custom_id] = number
        requests.append(request)
    if not requests:
        raise ConfigError(f"{path} holds no requests")
    return requests


def _read_request(line: str, where: str) -> BatchRequest:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("custom_id"), str) or not given["custom_id"]:
        raise ConfigError(f"{where}: a request is an object with a custom_id, which is a text")
    url, body, method = given.get("url"), given.get("body"), given.get("method", "POST")
    fault = ""
    if method != "POST":
        fault = f"method must be POST, got {method!r}"
    elif url not in URLS:
        fault = f"url must be one of {', '.join(URLS)}, got {url!r}"
    elif not isinstance(body, dict):
        fault = "body must be an object"
    elif body.get("stream"):
        fault = "a batch does not stream: leave stream out of the body"
    return BatchRequest(given["custom_id"], str(url), body if isinstance(body, dict) else {}, fault)


def answer_line(request: BatchRequest, reply: Reply | None) -> bytes:
    """One line of answers. Any HTTP status is a response; `error` is for a request that was never sent."""
    answer: dict[str, Any] = {
        "id": request.id,
        "custom_id": request.custom_id,
        "response": None,
        "error": None,
    }
    if reply is None:
        answer["error"] = {"code": "invalid_request", "message": request.fault}
    else:
        answer["response"] = {
            "status_code": reply.status,
            "request_id": reply.headers.get("x-request-id", ""),
            "body": reply.json(),
        }
    try:
        return json.dumps(answer, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only spell as an escape
        return json.dumps(answer).encode() + b"\n"


@dataclass(frozen=True)
class Answered:
    """What a file of answers holds already."""

    custom_ids: frozenset[str]
    fingerprints: frozenset[str]
    """of the plans that made them"""
    refused: int
    """how many are no success"""
    end: int
    """length of its whole lines in bytes"""


def read_answers(data: bytes, requests: Sequence[BatchRequest], path: str) -> Answered:
    """The answers of an earlier run. Raises `ConfigError` for a file that is not one of this batch."""
    end = data.rfind(b"\n") + 1
    expected = {request.custom_id: request.id for request in requests}
    done: set[str] = set()
    fingerprints: set[str] = set()
    refused = 0
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            answer = json.loads(line)
            custom_id, found = answer["custom_id"], answer["id"]
            response = answer["response"] or {}
            body, status = response.get("body") or {}, response.get("status_code")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}:{number} is no answer of a batch; name another --output") from error
        if expected.get(custom_id) != found:
            raise ConfigError(
                f"{path}:{number} answers another request than {custom_id!r} of this batch; name another --output"
            )
        if custom_id in done:
            raise ConfigError(f"{path}:{number} answers {custom_id!r} a second time; name another --output")
        done.add(custom_id)
        refused += status != SUCCESS
        if isinstance(body, dict) and body.get("system_fingerprint"):
            fingerprints.add(body["system_fingerprint"])
    tail = data[end:]
    if tail and not (b'{"id": "batch_req_'.startswith(tail[:18]) or tail.startswith(b'{"id": "batch_req_')):
        raise ConfigError(f"{path} ends in what is no answer of a batch; name another --output")
    return Answered(frozenset(done), frozenset(fingerprints), refused, end)


class AnswerFile:
    """Where answers go, one whole line a write."""

    def __init__(self, descriptor: int, answered: Answered) -> None:
        self._descriptor = descriptor
        self.answered = answered
        self.count = len(answered.custom_ids)
        """answers in it"""
        self.refused = answered.refused
        """those of them that are no success"""

    def append(self, request: BatchRequest, reply: Reply | None) -> None:
        """Add an answer. Raises `ConfigError` where the disk does not take all of it."""
        line = answer_line(request, reply)
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise ConfigError(f"cannot write the answers: {error.strerror}") from error
        if written != len(line):
            raise ConfigError("cannot write the answers: the disk is full; the next run goes on from here")
        self.count += 1
        self.refused += reply is None or reply.status != SUCCESS


@contextmanager
def open_answers(path: str, requests: Sequence[BatchRequest]) -> Iterator[AnswerFile]:
    """The file of answers, its partial last line cut off; standard output for `-`.

    Raises `ConfigError` for a file of something else, and while another run writes it.
    """
    if path == "-":
        sys.stdout.flush()
        yield AnswerFile(sys.stdout.fileno(), Answered(frozenset(), frozenset(), 0, 0))
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"cannot open {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another run is writing {path}") from error
        answered = read_answers(Path(path).read_bytes(), requests, path)
        os.truncate(descriptor, answered.end)
        yield AnswerFile(descriptor, answered)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
