"""Sending the requests at their times and noting when each piece of the answers came."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from samebits.bench.load.datasets import Question
from samebits.client import AsyncClient
from samebits.errors import EngineError

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """what other servers call it"""


class ChunkChoice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class StreamChunk(msgspec.Struct):
    """What is read of a frame; all else in it is passed over."""

    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    error: Any = None


@dataclass(frozen=True)
class Plan:
    """How a server is asked."""

    endpoint: str
    model: str
    rate: float
    """requests a second, infinite: all at once"""
    burstiness: float
    """1: a Poisson process; below, in bursts; above, more evenly"""
    most: int
    """requests at a time"""
    seed: int
    body: dict[str, Any]
    """fields of every request"""

    @property
    def is_chat(self) -> bool:
        """Whether requests hold messages, not a prompt."""
        return self.endpoint.endswith("/chat/completions")

    def gaps(self, count: int) -> list[float]:
        """Seconds before each request's start, after the one before it."""
        if math.isinf(self.rate):
            return [0.0] * count
        source = random.Random(f"arrivals {self.seed}")
        scale = 1 / (self.rate * self.burstiness)
        return [0.0] + [source.gammavariate(self.burstiness, scale) for _ in range(count - 1)]

    def request_body(self, question: Question) -> bytes:
        """A request as its server reads it."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": question.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.body,
        }
        if self.is_chat:
            body["messages"] = [{"role": "user", "content": question.prompt}]
        else:
            body["prompt"] = question.prompt
        return json.dumps(body).encode()


@dataclass
class Answer:
    """What came of one request. Times are of one clock, in seconds."""

    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    """when each piece with text came"""
    ended: float = 0.0
    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    counted: bool = False
    """whether the server told the tokens; else pieces are counted"""
    error: str = ""


async def drive(
    client: AsyncClient, questions: Sequence[Question], plan: Plan, done: Callable[[], object]
) -> list[Answer]:
    """Ask every question; answers in their order. One that fails has its `error`, and costs no other."""
    slots = asyncio.Semaphore(plan.most)
    tasks = []
    start = time.perf_counter()
    due = start

    async def ask(question: Question) -> Answer:
        async with slots:
            answer = await ask_one(client, plan, question)
        done()
        return answer

    async with asyncio.TaskGroup() as group:
        for question, gap in zip(questions, plan.gaps(len(questions)), strict=True):
            due += gap
            # Against the clock, not from sleep to sleep: a late start must not delay all that follow.
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            tasks.append(group.create_task(ask(question)))
    return [task.result() for task in tasks]


async def ask_one(client: AsyncClient, plan: Plan, question: Question) -> Answer:
    """One request, timed."""
    body = plan.request_body(question)
    answer = Answer(sent=time.perf_counter())
    texts: list[str] = []
    finished = False
    try:
        async with aclosing(client.stream(plan.endpoint, body)) as frames:
            async for data in frames:
                now = time.perf_counter()
                chunk = msgspec.json.decode(data, type=StreamChunk)
                if chunk.error is not None:
                    raise EngineError(json.dumps(chunk.error))
                for choice in chunk.choices:
                    finished = finished or choice.finish_reason is not None
                    if text := _text_of(choice):
                        answer.times.append(now)
                        texts.append(text)
                if chunk.usage is not None:
                    answer.prompt_tokens = chunk.usage.prompt_tokens
                    answer.output_tokens = chunk.usage.completion_tokens
                    answer.counted = True
    except (EngineError, ValueError) as error:  # a ValueError: no JSON, of another shape, or no UTF-8
        answer.error = str(error)
    answer.ended = time.perf_counter()
    answer.text = "".join(texts)
    if not answer.counted:
        answer.output_tokens = len(answer.times)
    if not finished and not answer.error:
        answer.error = "the answer broke off"
    return answer


def _text_of(choice: ChunkChoice) -> str:
    if choice.delta is not None:
        return (choice.delta.reasoning_content or choice.delta.reasoning or "") + (choice.delta.content or "")
    return choice.text or ""
