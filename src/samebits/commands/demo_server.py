"""The server of the demo: a process of its own on a free port, asked over HTTP, ended cleanly."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from samebits.commands.remote import NativeServer
from samebits.config import EngineConfig, ModelConfig, flag_text
from samebits.errors import EngineError
from samebits.verify.http import Client

START_SECONDS = 300.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.1


@contextmanager
def serving(model: ModelConfig, engine: EngineConfig) -> Iterator[Served]:
    """`samebits serve` with these settings, ready at the start and stopped with status 0 at the end.

    Raises `EngineError` with the server's last words where it does not start or does not stop cleanly.
    """
    port = free_port()
    flags = [
        flag_text(entry.name, getattr(settings, entry.name))
        for settings in (model, engine)
        for entry in dataclasses.fields(settings)
    ]
    command = [sys.executable, "-m", "samebits", "serve", f"--port={port}", *flags]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        client = Client(f"http://127.0.0.1:{port}")
        try:
            wait_until_ready(process, client, log)
            yield Served(client.url, NativeServer(client, client.json("GET", "/model_info")))
            process.send_signal(signal.SIGTERM)
            if (status := process.wait(STOP_SECONDS)) != 0:
                raise EngineError(f"the server ended with status {status}:\n{last_words(log)}")
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"the server did not stop in {STOP_SECONDS:g} s:\n{last_words(log)}") from error
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_SECONDS)


def wait_until_ready(process: subprocess.Popen[bytes], client: Client, log: IO[bytes]) -> None:
    """Return when /health says 200. Raises `EngineError` where the server ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineError(f"the server did not start:\n{last_words(log)}")
        # It refuses connections until it listens.
        with suppress(EngineError):
            if client.request("GET", "/health")[0] == 200:
                return
        time.sleep(POLL_SECONDS)
    raise EngineError(f"the server was not ready after {START_SECONDS:g} s:\n{last_words(log)}")


def last_words(log: IO[bytes]) -> str:
    """The last lines of the server's log."""
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-20:])


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    server: NativeServer

    @property
    def fingerprint(self) -> str:
        return str(self.server.facts["fingerprint"])

    def prompt(self, question: str) -> list[int] | str:
        """A user's question as the prompt that the chat template makes of it."""
        body = self.server.prompt([{"role": "user", "content": question}])
        prompt: list[int] | str = body.get("input_ids") or body["text"]
        return prompt

    def ask(self, prompts: list[Any]) -> list[dict[str, Any]]:
        """Answers to prompts of one kind (all token ids, or all texts), as one batch, most likely tokens, with
        logprobs."""
        field = "text" if isinstance(prompts[0], str) else "input_ids"
        body = {
            field: prompts,
            "sampling_params": {"temperature": 0, "max_new_tokens": 200},
            "return_logprob": True,
        }
        replies: list[dict[str, Any]] = self.server.client.json("POST", "/generate", body)
        return replies


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answer_digest(reply: dict[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of token ids and float32 logprobs of a `/generate` reply."""
    digest = hashlib.sha256()
    for logprob, token, *_ in reply["meta_info"]["output_token_logprobs"]:
        digest.update(struct.pack("<qf", token, logprob))
    return digest.hexdigest()[:16]
