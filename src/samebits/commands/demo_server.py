"""The server of the demo: a process of its own on a free port, asked over HTTP, ended cleanly."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

from samebits.commands.remote import NativeServer
from samebits.config import EngineConfig, ModelConfig, flag_name
from samebits.errors import EngineError
from samebits.verify.http import Client

START_SECONDS = 300.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.1


class Served:
    """`samebits serve` as a context: started and ready at the start, stopped with status 0 at the end.

    Raises `EngineError` with the server's last words where it does not start or does not stop cleanly.
    """

    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._client = Client(self.url)
        self._log: IO[bytes] = tempfile.TemporaryFile()
        flags = [
            f"{flag_name(entry.name)}={getattr(settings, entry.name)}"
            for settings in (model, engine)
            for entry in dataclasses.fields(settings)
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "samebits", "serve", f"--port={port}", *flags],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    def __enter__(self) -> Served:
        try:
            self._wait_until_ready()
            self._server = NativeServer(self._client, self._client.json("GET", "/model_info"))
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if status != 0 and kind is None:
            raise EngineError(f"the server ended with status {status}:\n{self._last_words()}")

    @property
    def fingerprint(self) -> str:
        return str(self._server.facts["fingerprint"])

    def prompt(self, question: str) -> list[int] | str:
        """A user's question as the prompt that the chat template makes of it."""
        body = self._server.prompt([{"role": "user", "content": question}])
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
        replies: list[dict[str, Any]] = self._client.json("POST", "/generate", body)
        return replies

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise EngineError(f"the server did not start:\n{self._last_words()}")
            try:
                if self._client.request("GET", "/health")[0] == 200:
                    return
            except EngineError:
                pass  # it does not listen yet
            time.sleep(POLL_SECONDS)
        raise EngineError(f"the server was not ready after {START_SECONDS:g} s:\n{self._last_words()}")

    def _last_words(self) -> str:
        self._log.seek(0, os.SEEK_SET)
        lines = self._log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-20:])


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
