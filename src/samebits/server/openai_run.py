"""What the OpenAI routes share on an answer's way out: the frame around choices, usage, and how samples are run."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from samebits.generation.generator import Generator
from samebits.generation.samples import Collector, Sample, SampleOutput
from samebits.server.front import Front
from samebits.server.http import (
    CLIENT_CLOSED_REQUEST,
    DONE_FRAME,
    EventStream,
    check_in_time,
    json_error_frame,
    json_response,
    until_disconnect,
)
from samebits.server.openai_common import field_names
from samebits.server.openai_schema import StreamOptions


@dataclass(frozen=True)
class Envelope:
    """What stands around the choices of one response."""

    kind: str
    """`text_completion` or `chat.completion`"""
    id: str
    created: int
    model: str
    fingerprint: str

    def head(self, suffix: str = "") -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.kind + suffix,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def make_envelope(front: Front, kind: str, prefix: str, rid: str | None) -> Envelope:
    """The envelope of a new response. `rid` is the caller's id of the request."""
    own = rid or uuid.uuid4().hex
    fingerprint = front.engine.facts.fingerprint
    return Envelope(kind, prefix + own, int(time.time()), front.model_name, fingerprint)


class Usage:
    """Counts tokens as they come."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        firsts = {sample.prompt_index: index for index, sample in reversed(list(enumerate(samples)))}
        self._firsts = list(firsts.values())
        self._prompt = sum(len(samples[index].request.prompt_ids) for index in self._firsts)
        self._completion = [0] * len(samples)
        self._cached = [0] * len(samples)

    def add(self, index: int, part: SampleOutput) -> None:
        """Count what is new of sample `index`."""
        self._completion[index] += len(part.token_ids)
        self._cached[index] = max(self._cached[index], part.cached_tokens)

    def object(self) -> dict[str, Any]:
        """`usage`: a prompt counts once, however many samples it has."""
        completion = sum(self._completion)
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": completion,
            "total_tokens": self._prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached[index] for index in self._firsts)},
        }


class Choice(Protocol):
    """Makes the objects of one choice."""

    def whole(self, result: SampleOutput) -> dict[str, Any]:
        """The choice of a response."""

    def pieces(self, part: SampleOutput) -> list[dict[str, Any]]:
        """The choices of a stream that say what is new in `part`."""


def check_finish(result: SampleOutput) -> None:
    """Raise the error of a sample that failed: half a response would look like a whole one."""
    if result.finish is not None and result.finish.type == "error":
        raise result.finish.error


@dataclass(frozen=True)
class Job:
    """Samples that are ready to run, and how they are answered."""

    samples: Sequence[Sample]
    choices: Sequence[Choice]
    """one a sample"""
    envelope: Envelope
    names: Mapping[str, str]
    """the route's words, by /generate's field names"""


async def respond(
    front: Front,
    request: Request,
    job: Job,
    stream: bool,
    options: StreamOptions | None,
    more: Mapping[str, Any],
) -> Response | ASGIApp:
    """Run a job and answer, whole (with `more` beside the choices) or as a stream."""
    if stream:
        return EventStream(_frames(front.generator, job, options), json_error_frame)
    done = await until_disconnect(request.receive, _whole(front.generator, job))
    if done is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return json_response({**job.envelope.head(), **done, **more})


async def results_of(
    generator: Generator, samples: Sequence[Sample], names: Mapping[str, str]
) -> list[SampleOutput]:
    """Run samples together to their ends. Raises `EngineError` when one fails, `DeadlineError` when none began."""
    with field_names(names):
        results = await generator.complete_all(samples)
    check_in_time(results)
    for result in results:
        check_finish(result)
    return results


async def parts_of(
    generator: Generator, samples: Sequence[Sample], names: Mapping[str, str]
) -> AsyncGenerator[tuple[int, SampleOutput], None]:
    """Run samples together; yields (index, what is new of that sample); the last of a sample has all of its
    warnings. Raises `EngineError` when one fails."""
    started = False
    collectors = [Collector(sample) for sample in samples]
    warnings: list[list[str]] = [[] for _ in samples]
    with field_names(names):
        async with aclosing(generator.stream_all(samples)) as turns:
            async for index, updates in turns:
                for update in updates:
                    collectors[index].add(update)
                part = collectors[index].result()
                collectors[index].clear()
                check_finish(part)
                warnings[index] += part.warnings
                if part.finish is not None:  # the last part is the one that tells them
                    part = replace(part, warnings=tuple(warnings[index]))
                if not started:
                    check_in_time([part])
                    started = True
                yield index, part


async def _whole(generator: Generator, job: Job) -> dict[str, Any]:
    results = await results_of(generator, job.samples, job.names)
    usage = Usage(job.samples)
    for index, result in enumerate(results):
        usage.add(index, result)
    made = [choice.whole(result) for choice, result in zip(job.choices, results, strict=True)]
    return {"choices": made, "usage": usage.object()}


async def _frames(
    generator: Generator, job: Job, options: StreamOptions | None
) -> AsyncGenerator[bytes, None]:
    """The frames of a stream: what is new of each choice, then usage if wanted, then the end mark."""
    with_usage = options is not None and bool(options.include_usage)
    running_usage = with_usage and options is not None and bool(options.continuous_usage_stats)
    suffix = ".chunk" if job.envelope.kind == "chat.completion" else ""
    start = b"data: " + msgspec.json.encode(job.envelope.head(suffix))[:-1] + b',"choices":'
    end = b',"usage":null}\n\n' if with_usage else b"}\n\n"
    usage = Usage(job.samples)
    async with aclosing(parts_of(generator, job.samples, job.names)) as parts:
        async for index, part in parts:
            usage.add(index, part)
            if running_usage:
                end = b',"usage":' + msgspec.json.encode(usage.object()) + b"}\n\n"
            for piece in job.choices[index].pieces(part):
                yield start + msgspec.json.encode([piece]) + end
    if with_usage:
        yield start + b'[],"usage":' + msgspec.json.encode(usage.object()) + b"}\n\n"
    yield DONE_FRAME
