"""A whole run of `samebits bench serve`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samebits.bench.facts import machine
from samebits.bench.load.datasets import (
    Lengths,
    Question,
    Speech,
    random_questions,
    shared_prefix_questions,
    sharegpt_questions,
)
from samebits.bench.load.drive import Answer, Plan, ask_one, drive
from samebits.bench.load.report import summarise
from samebits.client import AsyncClient, listed_model
from samebits.errors import ConfigError, EngineError

OTHERS_VOCABULARY = 32_000
"""ids below it exist in every usual model; taken where the server does not tell its vocabulary"""


@dataclass(frozen=True)
class DatasetOptions:
    """What is asked."""

    name: str
    """random, prefix_repetition or sharegpt"""
    count: int
    lengths: Lengths
    prefixes: int
    prefix_tokens: int
    path: Path | None
    sharegpt_output_tokens: int | None
    seed: int


@dataclass(frozen=True)
class ServerFacts:
    """What the server says of itself."""

    model: str
    vocabulary: int
    details: dict[str, Any]


async def look_at(client: AsyncClient, model: str) -> ServerFacts:
    """The server's model. Raises `ConfigError` where it lists none and `model` is empty."""
    listed = listed_model(await client.probe("/v1/models"))
    if not model:
        if listed is None:
            raise ConfigError(f"{client.url}/v1/models lists no model: name one with --model")
        model = listed["id"]
    info = await client.probe("/model_info")
    info = info if isinstance(info, dict) else {}
    version = await client.probe("/version")
    details = {"url": client.url, "model": model, "fingerprint": info.get("fingerprint", "")}
    if isinstance(version, dict):
        details |= {"version": version.get("version", "")}
    return ServerFacts(model, int(info.get("vocab_size") or OTHERS_VOCABULARY), details)


async def make_questions(
    client: AsyncClient, facts: ServerFacts, options: DatasetOptions, as_text: bool
) -> list[Question]:
    """The dataset's questions."""
    speech = Speech(facts.vocabulary, as_text)
    match options.name:
        case "random":
            return random_questions(options.count, options.lengths, speech, options.seed)
        case "prefix_repetition":
            return shared_prefix_questions(
                options.count, options.prefixes, options.prefix_tokens, options.lengths, speech, options.seed
            )
    if options.path is None:
        raise ConfigError("--dataset-name sharegpt needs --dataset-path, a file of ShareGPT's format")
    count = await token_counter(client, facts.model, options)
    read = (options.path, options.count, options.sharegpt_output_tokens, count, options.seed)
    return await asyncio.to_thread(sharegpt_questions, *read)


async def token_counter(client: AsyncClient, model: str, options: DatasetOptions) -> Callable[[str], int]:
    """Counts tokens by the server's /tokenize. Raises `ConfigError` where there is none and lengths are needed."""
    loop = asyncio.get_running_loop()

    async def ask(text: str) -> int:
        body = json.dumps({"model": model, "prompt": text}).encode()
        reply = await client.request("POST", "/tokenize", body)
        value = reply.json()
        if reply.status != 200 or not isinstance(value, dict) or "tokens" not in value:
            raise EngineError(f"{client.url}/tokenize answered {reply.status}")
        return len(value["tokens"])

    try:
        await ask("a")
    except EngineError as error:
        if options.sharegpt_output_tokens is None:
            raise ConfigError(
                f"{error}: give --sharegpt-output-len, for nobody counts tokens here"
            ) from error
        return lambda text: max(4, len(text) // 4)
    return lambda text: asyncio.run_coroutine_threadsafe(ask(text), loop).result()


async def run(
    client: AsyncClient,
    plan: Plan,
    options: DatasetOptions,
    warmups: int,
    percentiles: Sequence[float],
    limits: Mapping[str, float],
    detailed: bool = False,
) -> tuple[dict[str, Any], list[Answer]]:
    """Ask everything; (what to write down, the answers)."""
    from tqdm import tqdm

    facts = await look_at(client, plan.model)
    plan = replace(plan, model=facts.model)
    questions = await make_questions(client, facts, options, plan.is_chat)
    # Other questions than those that are measured, which must find the prefix cache as it was.
    others = replace(options, count=warmups, seed=~options.seed)
    for question in await make_questions(client, facts, others, plan.is_chat):
        first = await ask_one(client, plan, question)
        if first.error:
            raise EngineError(first.error)
    with tqdm(total=len(questions), unit="request", disable=None, file=sys.stderr) as bar:
        answers = await drive(client, questions, plan, lambda: bar.update(1))
    result: dict[str, Any] = {
        "benchmark": "serve",
        **machine(),
        "server": facts.details,
        "dataset": {**asdict(options), "path": str(options.path or "")},
        "plan": {**asdict(plan), "rate": str(plan.rate), "most": plan.most},
        "warmups": warmups,
        "results": summarise(answers, percentiles, limits),
    }
    if detailed:
        start = min(answer.sent for answer in answers)
        result["requests"] = [
            {
                "sent": answer.sent - start,
                "times": [moment - start for moment in answer.times],
                "ended": answer.ended - start,
                "prompt_tokens": answer.prompt_tokens,
                "output_tokens": answer.output_tokens,
                "text": answer.text,
                "error": answer.error,
            }
            for answer in answers
        ]
    return result, answers
