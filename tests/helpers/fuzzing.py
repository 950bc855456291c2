"""What both fuzzers share: how long they run, a probe whose bits must not change, and what every answer must be."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_engine import write_checkpoint
from live_server import LiveServer

PROBE = {
    "text": "the same request",
    "sampling_params": {"temperature": 0.8, "max_new_tokens": 12, "sampling_seed": 7, "ignore_eos": True},
    "return_logprob": True,
    "logprob_start_len": 0,
    "top_logprobs_num": 2,
}
CHAT_PROBE = {"messages": [{"role": "user", "content": "the same"}], "max_tokens": 8, "seed": 7}
SECONDS = float(os.environ.get("SAMEBITS_FUZZ_SECONDS", "4"))
"""how long each fuzzer goes on; it makes one round at least"""
SEED = int(os.environ.get("SAMEBITS_FUZZ_SEED", "1")) or time.time_ns() % 10**9
"""the same bodies at every run, unless another seed is named (0: the clock's); told of when something is found"""
FAILURES = (b'"engine_error"', b'"server_error"', b"response.failed", b'"api_error"')


TEMPLATE = """{%- if tools %}<tool_call>{{ tools | tojson }}{% endif %}
{%- for message in messages %}<|start|>{{ message.role }}
{{ message.content }}{{ message.reasoning_content }}
{%- for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}<|end|>
{% endfor %}{{ reasoning_effort }}{{ documents | tojson }}{{ strftime_now('%d %B') if date_wanted }}
<|start|>assistant
{% if enable_thinking %}<think></think>{% endif %}"""


def write_fuzzed_checkpoint(folder: Path) -> Path:
    """A quick model with a short context, whose template reads everything that a request may hold."""
    write_checkpoint(folder, context_length=640)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return folder


def rounds(seconds: float) -> Iterator[int]:
    """The seed of each round until the time is up."""
    end = time.monotonic() + seconds
    number = SEED
    while True:
        yield number
        number += 1
        if time.monotonic() > end:
            return


@dataclass
class Watched:
    """A server that is being fuzzed."""

    server: LiveServer
    bits: str = ""

    def __post_init__(self) -> None:
        self.bits = self.probe()

    def probe(self) -> str:
        """Every bit of two answers."""
        answer = self.server.generate(**PROBE)
        logprobs = {k: v for k, v in answer["meta_info"].items() if "logprobs" in k}
        chat = self.server.post("/v1/chat/completions", CHAT_PROBE).json()
        return json.dumps([answer["output_ids"], logprobs, chat["choices"]])

    def check(self, found_by: str) -> None:
        """The server lives, nothing in it raised, and the probe's bits are what they were."""
        assert self.server.process.poll() is None, f"the server died: {found_by}\n{self.server.log()[-3000:]}"
        assert "Traceback" not in self.server.log(), f"{found_by}\n{self.server.log()[-3000:]}"
        assert self.probe() == self.bits, f"the probe's bits changed: {found_by}"
        assert self.server.get("/health").status_code == 200


def check_answer(status: int, kind: str, content: bytes, found_by: str) -> None:
    """No answer (its status, content type and body) is a failure of the server, and every error says what is wrong
    in JSON."""
    if status >= 400:
        error = error_of(kind, content, found_by)
        late = status == 504 and error["code"] == "deadline_exceeded"
        assert status < 500 or late, f"{status}: {error} {found_by}"
        return
    assert status == 200, f"{status} {found_by}"
    if kind.startswith("text/event-stream"):
        assert not any(mark in content for mark in FAILURES), f"{content[-600:]!r} {found_by}"


def error_of(kind: str, content: bytes, found_by: str) -> dict[str, Any]:
    """The error in an answer: message, type, param, code."""
    assert kind == "application/json", f"no JSON: {kind} {found_by}"
    error = json.loads(content)["error"]
    assert {"message", "type", "param", "code"} == set(error), f"{error} {found_by}"
    assert isinstance(error["message"], str) and error["message"], f"{error} {found_by}"
    assert isinstance(error["type"], str) and error["type"], f"{error} {found_by}"
    assert error["param"] is None or isinstance(error["param"], str), f"{error} {found_by}"
    assert error["code"] is None or isinstance(error["code"], str), f"{error} {found_by}"
    return dict(error)
