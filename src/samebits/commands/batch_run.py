"""`samebits generate --batch`: every request of a batch answered once, however often the run is cut short."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from samebits.client import Reply, ServerGoneError
from samebits.commands.asked import Asked, add_asked, open_asked
from samebits.commands.batch import AnswerFile, BatchRequest, open_answers, read_batch
from samebits.commands.flags import positive, settings_of
from samebits.config import ModelConfig
from samebits.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from tqdm import tqdm

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""seconds before each new attempt"""
TROUBLE = dict.fromkeys((408, 429, 502, 503, 504), len(PAUSES)) | {500: 2}
"""statuses of a server in trouble, not of a request that is wrong, and how many new attempts they are worth; a 500
may be the request's own, each time again"""
NO_ENTRY = (401, 403)


def add_batch(parser: argparse.ArgumentParser) -> None:
    """The flags of a batch."""
    group = parser.add_argument_group("batch (instead of prompts)")
    group.add_argument(
        "--batch",
        "-i",
        metavar="FILE",
        help="requests in OpenAI's batch format, one a line; - is standard input",
    )
    group.add_argument(
        "--output",
        "-o",
        metavar="FILE",
        default="-",
        help="where answers are added, as they come; run again, it goes on where it was (default: standard output)",
    )
    add_asked(group)
    group.add_argument(
        "--max-concurrency", type=positive, default=64, metavar="N", help="requests at a time (default: 64)"
    )
    group.add_argument(
        "--served-model-name", metavar="NAME", help="what the requests call the model (default: its own name)"
    )


def run_batch(options: argparse.Namespace) -> int:
    """Answer what is not answered yet. Returns 0 when everything is."""
    requests = read_batch(options.batch)
    if not options.url:
        check_models(requests, model_name(options))
    with open_answers(options.output, requests) as answers:
        missing = [item for item in requests if item.custom_id not in answers.answered.custom_ids]
        if missing:
            asyncio.run(_answer(options, missing, answers, len(requests)))
        refused = f", {answers.refused} of them with a refusal" if answers.refused else ""
        print(f"{answers.count} requests are answered{refused}", file=sys.stderr)
    return 0


def model_name(options: argparse.Namespace) -> str:
    """What requests may call the model in this process."""
    return str(options.served_model_name or settings_of(options, ModelConfig).model)


def check_models(requests: Sequence[BatchRequest], name: str) -> None:
    """Raise `ConfigError` where a request asks for another model: a whole file of refusals helps nobody."""
    for request in requests:
        wanted = request.body.get("model")
        if wanted not in (None, "", "default", name):
            raise ConfigError(
                f"{request.custom_id!r} asks for the model {wanted!r}, and this one is called {name!r}: "
                f"say --served-model-name {wanted}"
            )


async def _answer(
    options: argparse.Namespace, requests: Sequence[BatchRequest], answers: AnswerFile, total: int
) -> None:
    from tqdm import tqdm

    with tqdm(total=total, initial=total - len(requests), unit="request", disable=None) as bar:
        async with open_asked(options, model_name(options)) as (server, fingerprint):
            before = answers.answered.fingerprints
            if fingerprint and before and before != {fingerprint}:
                raise ConfigError(
                    f"{options.output} holds answers of {', '.join(sorted(before))}, and this model's fingerprint is "
                    f"{fingerprint}: name another --output"
                )
            try:
                await _ask_all(server, requests, answers, options.max_concurrency, bar)
            except EngineError as error:
                raise EngineError(
                    f"{error}\n{answers.count} of {total} requests are answered; the same command goes on from there"
                ) from error


async def _ask_all(
    server: Asked, requests: Sequence[BatchRequest], answers: AnswerFile, most: int, bar: tqdm[Any]
) -> None:
    """Ask `most` at a time. One that cannot be answered ends them all, for others would fare no better."""
    waiting = iter(requests)

    async def worker() -> None:
        for request in waiting:
            reply = None if request.fault else await _ask(server, request)
            answers.append(request, reply)
            bar.update(1)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(most, len(requests))):
                group.create_task(worker())
    except* (EngineError, ConfigError) as failed:
        raise failed.exceptions[0] from None


async def _ask(server: Asked, request: BatchRequest) -> Reply:
    """The answer, after new attempts where the server is in trouble.

    Raises `ServerGoneError` when it stays away, `ConfigError` when it wants a key.
    """
    body = json.dumps(request.body).encode()
    attempt = 0
    while True:
        try:
            reply = await server.request("POST", request.url, body)
        except ServerGoneError:
            if attempt == len(PAUSES):
                raise
        else:
            if reply.status in NO_ENTRY:
                raise ConfigError(f"the server answers {reply.status}: give it an --api-key that it knows")
            if attempt >= TROUBLE.get(reply.status, 0):
                return reply
        await asyncio.sleep(PAUSES[attempt])
        attempt += 1
