"""/generate and its companions, in the shape of SGLang's native API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from samebits.engine.messages import LogprobOptions
from samebits.errors import RequestError
from samebits.generation.generator import Generator
from samebits.generation.samples import Collector, GenerationRequest, Sample
from samebits.sampling_params import MAX_SAMPLES, STRUCTURED_FIELDS, SamplingParams
from samebits.server.fields import convert_object, decode_object
from samebits.server.front import Front, check_count
from samebits.server.http import (
    CLIENT_CLOSED_REQUEST,
    DONE_FRAME,
    EventStream,
    check_in_time,
    event_frame,
    json_error_frame,
    json_response,
    read_body,
    until_disconnect,
)
from samebits.server.native_format import LogprobView, SampleFormatter
from samebits.server.schema import (
    AbortBody,
    NativeRequest,
    NativeSampling,
    convert_sampling,
    decode_native,
)

Item = TypeVar("Item")
PLAIN_FIELDS = tuple(
    name for name in NativeSampling.__struct_fields__ if name not in ("stop", "logit_bias", "sampling_seed")
)
"""of `sampling_params`, those that mean the same as in `SamplingParams`"""


@dataclass(frozen=True)
class Batch:
    """A /generate body, taken apart."""

    requests: list[GenerationRequest]
    views: list[LogprobView]
    """one a request"""
    group: str
    single: bool
    """answered with an object, not a list"""


class NativeRoutes:
    """The native API of one server."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [
            Route("/generate", self.generate, methods=["POST", "PUT"]),
            Route("/abort_request", self.abort_request, methods=["POST"]),
            Route("/flush_cache", self.flush_cache, methods=["GET", "POST"]),
        ]

    async def generate(self, request: Request) -> Response | ASGIApp:
        generator = self._front.generator
        body = decode_native(await read_body(request, self._front.body_limit))
        batch = take_apart(body, self._front.most_samples)
        samples = await generator.prepare_beside(batch.requests, batch.group)
        formatters = [
            SampleFormatter(
                sample,
                generator.facts,
                generator.tokenizer,
                batch.views[sample.prompt_index],
                with_prompt_ids=bool(body.return_prompt_token_ids),
            )
            for sample in samples
        ]
        if body.stream:
            frames = _frames(generator, samples, formatters, bool(body.incremental), not batch.single)
            return EventStream(frames, json_error_frame)
        results = await until_disconnect(request.receive, generator.complete_all(samples))
        if results is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        check_in_time(results)
        answers = [maker.response(result) for maker, result in zip(formatters, results, strict=True)]
        if not batch.single:
            return json_response(answers)
        finish = results[0].finish
        if finish is not None and finish.type == "error":
            raise finish.error
        return json_response(answers[0])

    async def abort_request(self, request: Request) -> Response:
        value = decode_object(await read_body(request, self._front.body_limit))
        body = convert_object(value, AbortBody, "", {"abort_message": "a label"}, {})
        generator = self._front.generator
        if body.abort_all:
            generator.abort_all()
        elif body.rid:
            generator.abort(body.rid)
        else:
            raise RequestError("name a rid, or set abort_all", "rid")
        return Response(status_code=200)

    async def flush_cache(self, request: Request) -> Response:
        pages = await self._front.generator.flush_cache()
        return Response(f"Cache flushed: {pages} pages dropped.\n", media_type="text/plain")


async def _frames(
    generator: Generator,
    samples: list[Sample],
    formatters: list[SampleFormatter],
    incremental: bool,
    indexed: bool,
) -> AsyncGenerator[bytes, None]:
    """The frames of a stream: cumulative as SGLang's, or with what is new in each (`incremental`). Raises the error of
    a sample that fails, unless it is one of several (`indexed`)."""
    collectors = [Collector(sample) for sample in samples]
    counts = [0] * len(samples)
    started = False
    async with aclosing(generator.stream_all(samples)) as turns:
        async for index, updates in turns:
            for update in updates:
                collectors[index].add(update)
                counts[index] += len(update.token_ids)
            result = collectors[index].result()
            if result.finish is not None and result.finish.type == "error" and not indexed:
                raise result.finish.error  # it is not a member of a list: as in an answer without a stream
            if not started:
                check_in_time([result])
                started = True
            answer = formatters[index].response(result, counts[index])
            if incremental:
                collectors[index].clear()
            if indexed:
                answer["index"] = index
            yield event_frame(answer)
    yield DONE_FRAME


def take_apart(body: NativeRequest, most: int) -> Batch:
    """The prompts of a body, each with its own parameters; `most` samples of them. Raises `RequestError` naming the
    field."""
    field = "input_ids" if body.text is None else "text"
    given = body.input_ids if body.text is None else body.text
    if isinstance(given, list) and given and isinstance(given[0], str | list):
        check_count(len(given), most, field)
    prompts, single = _prompts(body)
    size = len(prompts)
    flags = _each(body.return_logprob, size, False, "return_logprob")
    starts = _each(body.logprob_start_len, size, -1, "logprob_start_len")
    tops = _each(body.top_logprobs_num, size, 0, "top_logprobs_num")
    selected = _token_lists(body.token_ids_logprob, size)
    sampling = _sampling(body.sampling_params, size)
    check_count(sum(min(params.n, MAX_SAMPLES) for params in sampling), most, field)
    group = body.rid if isinstance(body.rid, str) else uuid.uuid4().hex
    rids = _rids(body.rid, size, single)
    requests, views = [], []
    for index, prompt in enumerate(prompts):
        wanted = flags[index]
        options = LogprobOptions()
        if wanted:
            options = LogprobOptions(
                output=True,
                prompt_start=starts[index],
                top=tops[index],
                token_ids=selected[index],
                processed=bool(body.processed_logprobs),
            )
        request = GenerationRequest(
            prompt=prompt,
            params=sampling[index],
            logprobs=options,
            rid=rids[index],
            priority=body.priority or 0,
            use_prefix_cache=body.use_prefix_cache is not False,
            deadline_seconds=body.deadline_seconds,
        )
        requests.append(request)
        view = LogprobView(
            wanted, options.top > 0, bool(options.token_ids), bool(body.return_text_in_logprobs)
        )
        views.append(view)
    return Batch(requests, views, group, single and requests[0].params.n == 1)


def _prompts(body: NativeRequest) -> tuple[list[str | list[int]], bool]:
    """(prompts, whether the body holds one prompt and no list of them)."""
    if (body.text is None) == (body.input_ids is None):
        raise RequestError("give either text or input_ids", "text")
    if body.text is not None:
        if isinstance(body.text, str):
            return [body.text], True
        if not body.text:
            raise RequestError("text holds no prompt", "text")
        return list(body.text), False
    ids = body.input_ids
    assert ids is not None
    if not ids:
        raise RequestError("input_ids is empty: a prompt needs at least one token", "input_ids")
    lists = [entry for entry in ids if isinstance(entry, list)]
    if not lists:
        return [[entry for entry in ids if isinstance(entry, int)]], True
    if len(lists) != len(ids):
        raise RequestError("input_ids must hold either token ids or lists of token ids", "input_ids")
    return list(lists), False


def _each(value: Item | list[Item] | None, size: int, default: Item, field: str) -> list[Item]:
    """One value a prompt, of a field that may hold one for all or a list."""
    if value is None:
        return [default] * size
    if not isinstance(value, list):
        return [value] * size
    _check_length(value, size, field)
    return value


def _check_length(value: list[Any], size: int, field: str) -> None:
    if len(value) != size:
        raise RequestError(f"{field} has {len(value)} entries for {size} prompts", field)


def _token_lists(value: list[int | list[int]] | None, size: int) -> list[list[int]]:
    if not value:
        return [[] for _ in range(size)]
    lists = [entry for entry in value if isinstance(entry, list)]
    if not lists:
        return [[entry for entry in value if isinstance(entry, int)]] * size
    if len(lists) != len(value):
        raise RequestError("token_ids_logprob must hold either ids or lists of ids", "token_ids_logprob")
    _check_length(lists, size, "token_ids_logprob")
    return lists


def _rids(value: str | list[str] | None, size: int, single: bool) -> list[str]:
    """Ids of the prompts; empty means a random one. One id for a list of prompts is numbered."""
    if value is None:
        return [""] * size
    if isinstance(value, str):
        if not value:
            raise RequestError("rid must not be empty", "rid")
        return [value] if single else [f"{value}_{index}" for index in range(size)]
    _check_length(value, size, "rid")
    if not all(value):
        raise RequestError("rid must not be empty", "rid")
    return value


def _sampling(value: dict[str, Any] | list[dict[str, Any]] | None, size: int) -> list[SamplingParams]:
    if value is None:
        return [SamplingParams()] * size
    if isinstance(value, dict):
        return [to_params(convert_sampling(value, "sampling_params."))] * size
    _check_length(value, size, "sampling_params")
    return [
        to_params(convert_sampling(entry, f"sampling_params[{index}].")) for index, entry in enumerate(value)
    ]


def to_params(given: NativeSampling) -> SamplingParams:
    """SGLang's names to ours; null is the same as not given."""
    values = {name: value for name in PLAIN_FIELDS if (value := getattr(given, name)) is not None}
    for name in STRUCTURED_FIELDS:
        if values.get(name) == "":
            del values[name]
    if given.stop is not None:
        values["stop"] = [given.stop] if isinstance(given.stop, str) else given.stop
    if given.logit_bias is not None:
        values["logit_bias"] = {_integer(key, "logit_bias"): bias for key, bias in given.logit_bias.items()}
    if given.sampling_seed is not None:
        seed = values["seed"] = _integer(given.sampling_seed, "sampling_seed")
        if not -(1 << 63) <= seed < 1 << 64:
            raise RequestError(f"sampling_seed must fit in 64 bits, got {seed}", "sampling_seed")
    return SamplingParams(**values)


def _integer(value: int | str, field: str) -> int:
    """An integer, or its decimal digits."""
    if isinstance(value, int):
        return value
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        raise RequestError(f"{field} holds {value[:40]!r}, which is not a decimal integer", field)
    return int(value)
