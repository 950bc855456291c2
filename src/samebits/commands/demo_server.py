"""The server of the demo: a process of its own on a free port, asked over HTTP, ended cleanly."""

from __future__ import annotations

import hashlib
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from samebits.commands.remote import NativeServer
from samebits.commands.server_process import serve_arguments, server_process
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import EngineError

STOP_SECONDS = 30.0


@contextmanager
def serving(model: ModelConfig, engine: EngineConfig) -> Iterator[Served]:
    """`samebits serve` with these settings, ready at the start and stopped with status 0 at the end.

    Raises `EngineError` with the server's last words where it does not start or does not stop cleanly.
    """
    with server_process(partial(serve_arguments, model, engine), STOP_SECONDS) as running:
        process, client = running.process, running.client
        yield Served(client.url, NativeServer(client, client.json("GET", "/model_info")))
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"the server did not stop in {STOP_SECONDS:g} s:\n{running.last_words()}"
            ) from error
        if status != 0:
            raise EngineError(f"the server ended with status {status}:\n{running.last_words()}")


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


def answer_digest(reply: dict[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of token ids and float32 logprobs of a `/generate` reply."""
    digest = hashlib.sha256()
    for logprob, token, *_ in reply["meta_info"]["output_token_logprobs"]:
        digest.update(struct.pack("<qf", token, logprob))
    return digest.hexdigest()[:16]
