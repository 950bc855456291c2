"""What the OpenAI routes share: names, parameters, the frame around choices, usage, and how samples are run."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from samebits.errors import EngineError, RequestError
from samebits.generation.generator import Generator
from samebits.generation.samples import Collector, Sample, SampleResult
from samebits.sampling_params import SamplingParams
from samebits.server.front import Front
from samebits.server.http import DONE_FRAME, NotFoundError, check_in_time
from samebits.server.native import to_params
from samebits.server.openai_schema import CommonFields, SamplingFields
from samebits.server.schema import NativeSampling

LARGE_PROMPT = 20_000
"""characters of text beyond which tokenizing leaves the event loop"""
OWN_NAMES = ("max_tokens", "min_tokens", "seed", "include_stop_str_in_output")
ANY_MODEL = ("", "default")
"""names that clients send when they mean the only model"""


def check_model(front: Front, name: str | None) -> None:
    """Raise `NotFoundError` unless `name` is the served model's, or leaves it open."""
    known = (front.model_name, front.engine.facts.model, *ANY_MODEL)
    if name is not None and name not in known:
        message = f"the model {name!r} does not exist here; this server has {front.model_name!r}"
        raise NotFoundError(message, "model", "model_not_found")


def check_common(common: CommonFields, given: SamplingFields) -> None:
    """Raise `RequestError` for combinations of the shared fields that mean nothing."""
    if common.stream_options is not None and not common.stream:
        raise RequestError("stream_options is allowed only with stream: true", "stream_options")
    if given.seed is not None and given.sampling_seed not in (None, given.seed):
        raise RequestError("seed and sampling_seed are two names of one thing and differ", "sampling_seed")
    if common.rid == "":
        raise RequestError("rid must not be empty", "rid")
    if common.prompt_logprobs is not None and common.prompt_logprobs < 0:
        raise RequestError("prompt_logprobs must not be negative", "prompt_logprobs")


def to_sampling(given: SamplingFields, max_new_tokens: int | None) -> SamplingParams:
    """OpenAI's names, and vLLM's and SGLang's, to ours. Raises `RequestError` naming the field."""
    values = msgspec.structs.asdict(given)
    for name in OWN_NAMES:
        del values[name]
    if given.seed is not None:
        values["sampling_seed"] = given.seed
    values["no_stop_trim"] = bool(given.no_stop_trim or given.include_stop_str_in_output)
    return to_params(NativeSampling(**values, max_new_tokens=max_new_tokens, min_new_tokens=given.min_tokens))


@contextmanager
def field_names(names: Mapping[str, str]) -> Iterator[None]:
    """Say a refusal in the route's own words: `names` has them by /generate's field names."""
    try:
        yield
    except RequestError as error:
        if type(error) is not RequestError or error.field is None or error.field not in names:
            raise
        words = "|".join(name for name in names if "_" in name)
        message = re.sub(rf"\b({words})\b", lambda match: names[match.group()], str(error))
        if message.startswith("text "):
            message = names["text"] + message.removeprefix("text")
        raise RequestError(message, names[error.field], error.code) from error


async def encode(generator: Generator, text: str, add_special_tokens: bool, field: str) -> list[int]:
    """Token ids of a prompt. Raises `RequestError` naming `field`."""
    tokenizer = generator.tokenizer
    if tokenizer is None:
        raise RequestError("this checkpoint has no tokenizer: send token ids to /v1/completions", field)
    with field_names({"text": field}):
        if len(text) > LARGE_PROMPT:
            token_ids = await asyncio.to_thread(tokenizer.encode, text, add_special_tokens)
        else:
            token_ids = tokenizer.encode(text, add_special_tokens)
    if not token_ids:
        raise RequestError(f"{field} is empty: a prompt needs at least one token", field)
    return token_ids


def check_length(generator: Generator, prompt_ids: Sequence[int], limit: int | None, field: str) -> None:
    """Raise `RequestError` for a prompt that leaves no room in the context for the first of `limit` tokens."""
    longest = generator.facts.context_length
    if len(prompt_ids) + (limit != 0) > longest:
        message = (
            f"this model's context length is {longest} tokens and the prompt has {len(prompt_ids)}: "
            "no room is left for an output token"
        )
        raise RequestError(message, field, "context_length_exceeded")


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

    def add(self, index: int, part: SampleResult) -> None:
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

    def whole(self, result: SampleResult) -> dict[str, Any]:
        """The choice of a response."""

    def pieces(self, part: SampleResult) -> list[dict[str, Any]]:
        """The choices of a stream that say what is new in `part`."""


def check_finish(result: SampleResult) -> None:
    """Raise `EngineError` for a sample that failed: half a response would look like a whole one."""
    if result.finish is not None and result.finish.type == "error":
        raise EngineError(result.finish.message)


async def run_whole(
    generator: Generator, samples: Sequence[Sample], choices: Sequence[Choice], names: Mapping[str, str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(choices, usage) of a response."""
    with field_names(names):
        results = await generator.complete_all(samples)
    check_in_time(results)
    usage = Usage(samples)
    for index, result in enumerate(results):
        check_finish(result)
        usage.add(index, result)
    made = [choice.whole(result) for choice, result in zip(choices, results, strict=True)]
    return made, usage.object()


async def run_stream(
    generator: Generator,
    samples: Sequence[Sample],
    choices: Sequence[Choice],
    envelope: Envelope,
    common: CommonFields,
    names: Mapping[str, str],
) -> AsyncGenerator[bytes, None]:
    """The frames of a stream: what is new of each choice, then usage if wanted, then the end mark."""
    options = common.stream_options
    with_usage = options is not None and bool(options.include_usage)
    running_usage = with_usage and options is not None and bool(options.continuous_usage_stats)
    head = msgspec.json.encode(envelope.head(".chunk" if envelope.kind == "chat.completion" else ""))
    start = b"data: " + head[:-1] + b',"choices":'
    end = b',"usage":null}\n\n' if with_usage else b"}\n\n"
    usage = Usage(samples)
    started = False
    collectors = [Collector(sample) for sample in samples]
    with field_names(names):
        async with aclosing(generator.stream_all(samples)) as turns:
            async for index, updates in turns:
                for update in updates:
                    collectors[index].add(update)
                part = collectors[index].result()
                collectors[index].clear()
                check_finish(part)
                if not started:
                    check_in_time([part])
                    started = True
                usage.add(index, part)
                if running_usage:
                    end = b',"usage":' + msgspec.json.encode(usage.object()) + b"}\n\n"
                for piece in choices[index].pieces(part):
                    yield start + msgspec.json.encode([piece]) + end
    if with_usage:
        yield start + b'[],"usage":' + msgspec.json.encode(usage.object()) + b"}\n\n"
    yield DONE_FRAME
