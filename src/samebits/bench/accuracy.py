"""`samebits bench accuracy`: the same problems again and again, in changing company.

A benchmark's score wanders from run to run where answers depend on the batch. Each run asks every question in another
order, at one of several concurrencies; how far the scores lie apart, and how many different sets of answers there were,
is the result.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Protocol

from samebits.client import Reply
from samebits.errors import ConfigError, EngineError

BUNDLED = Path(__file__).parents[1] / "data" / "arithmetic_test.jsonl"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
CHAT = "/v1/chat/completions"


class Asked(Protocol):
    """A server, here or elsewhere."""

    async def request(self, method: str, path: str, body: bytes | None = None) -> Reply: ...


@dataclass(frozen=True)
class Problem:
    """A question, its worked answer and the number that this ends in."""

    question: str
    answer: str
    result: Decimal


@dataclass(frozen=True)
class Trial:
    """One run over all problems."""

    concurrency: int
    repeat: int
    answers: tuple[str, ...]
    """in the order of the problems, in which they were not asked"""
    right: int
    seconds: float

    @property
    def digest(self) -> str:
        """SHA-256 of the answers."""
        whole = hashlib.sha256()
        for answer in self.answers:
            whole.update(hashlib.sha256(answer.encode(errors="surrogatepass")).digest())
        return whole.hexdigest()


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, as GSM8K marks results, else the last number; None where there is none."""
    found = NUMBER.findall(text.rpartition("####")[2]) if "####" in text else NUMBER.findall(text)[-1:]
    try:
        return Decimal(found[0].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def read_problems(path: Path) -> list[Problem]:
    """Problems of a file in GSM8K's format: a line each, with `question` and `answer`.

    Raises `ConfigError` naming the line.
    """
    problems = []
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            question, answer = str(entry["question"]), str(entry["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number} has no question and answer: {error!r}") from error
        result = final_number(answer)
        if result is None:
            raise ConfigError(f"{path}:{number}: the answer ends in no number")
        problems.append(Problem(question, answer, result))
    return problems


@dataclass(frozen=True)
class Exam:
    """What is asked and how."""

    problems: Sequence[Problem]
    shots: Sequence[Problem]
    """worked examples before each question"""
    body: dict[str, Any]
    """fields of every request"""

    def request_body(self, problem: Problem) -> bytes:
        messages = []
        for shot in self.shots:
            messages.append({"role": "user", "content": shot.question})
            messages.append({"role": "assistant", "content": shot.answer})
        messages.append({"role": "user", "content": problem.question})
        return json.dumps({**self.body, "messages": messages}).encode()


async def ask_all(
    server: Asked, exam: Exam, concurrency: int, repeat: int, done: Callable[[], object]
) -> Trial:
    """One run. Raises `EngineError` with the server's words where it does not answer a question."""
    order = list(range(len(exam.problems)))
    random.Random(f"order {concurrency} {repeat}").shuffle(order)
    waiting = iter(order)
    answers = [""] * len(order)

    async def worker() -> None:
        for index in waiting:
            answers[index] = await ask(server, exam.request_body(exam.problems[index]))
            done()

    start = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(order))):
                group.create_task(worker())
    except* EngineError as failed:
        raise failed.exceptions[0] from None
    seconds = time.perf_counter() - start
    pairs = zip(exam.problems, answers, strict=True)
    right = sum(final_number(answer) == problem.result for problem, answer in pairs)
    return Trial(concurrency, repeat, tuple(answers), right, seconds)


async def ask(server: Asked, body: bytes) -> str:
    """The answer to one question."""
    reply = await server.request("POST", CHAT, body)
    value = reply.json()
    try:
        if reply.status != 200:
            raise KeyError
        message = value["choices"][0]["message"]
        return str(message.get("content") or "")
    except (KeyError, TypeError, IndexError) as error:
        text = reply.body[:500].decode(errors="replace")
        raise EngineError(f"{CHAT} answered {reply.status}: {text}") from error


def summarise(exam: Exam, trials: Sequence[Trial]) -> dict[str, Any]:
    """Mean, spread and what differed."""
    scores = [trial.right / len(exam.problems) for trial in trials]
    variants = [{trial.answers[index] for trial in trials} for index in range(len(exam.problems))]
    wavering = [index for index, answers in enumerate(variants) if len(answers) > 1]
    return {
        "questions": len(exam.problems),
        "runs": len(trials),
        "mean": statistics.mean(scores),
        "spread": max(scores) - min(scores),
        "standard_deviation": statistics.pstdev(scores),
        "unique_answer_sets": len({trial.digest for trial in trials}),
        "questions_with_several_answers": len(wavering),
        "examples": [
            {"question": exam.problems[index].question, "answers": sorted(variants[index])}
            for index in wavering[:3]
        ],
    }


def trial_facts(exam: Exam, trial: Trial) -> dict[str, Any]:
    """A run, for the result file."""
    return {
        "concurrency": trial.concurrency,
        "repeat": trial.repeat,
        "right": trial.right,
        "accuracy": trial.right / len(exam.problems),
        "answers_digest": trial.digest,
        "seconds": trial.seconds,
    }


def table_rows(exam: Exam, trials: Sequence[Trial]) -> list[list[str]]:
    """A line a run."""
    rows = [["concurrency", "run", "right", "accuracy", "answers"]]
    for trial in trials:
        share = f"{100 * trial.right / len(exam.problems):.2f} %"
        rows.append(
            [str(trial.concurrency), str(trial.repeat + 1), str(trial.right), share, trial.digest[:16]]
        )
    return rows
