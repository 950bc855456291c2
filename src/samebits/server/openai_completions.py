"""/v1/completions."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from samebits.engine.messages import EngineFacts, LogprobOptions
from samebits.errors import RequestError
from samebits.generation.generator import Generator
from samebits.generation.samples import Sample, SampleOutput
from samebits.grammar.language import grammar_of
from samebits.sampling_params import MAX_SAMPLES
from samebits.server.front import Front, check_count
from samebits.server.openai_common import (
    SHARED_NAMES,
    check_length,
    encode,
    field_names,
    generation_request,
    read_request,
    to_sampling,
)
from samebits.server.openai_logprobs import (
    CompletionLogprobs,
    TokenNames,
    View,
    end_fields,
    prompt_logprobs,
)
from samebits.server.openai_run import Job, make_envelope, respond
from samebits.server.openai_schema import (
    REFUSED_COMPLETION_FIELDS,
    CommonFields,
    CompletionFields,
)
from samebits.server.openai_structured import output_part
from samebits.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16
NAMES = SHARED_NAMES | {"text": "prompt", "input_ids": "prompt", "top_logprobs_num": "logprobs"}


class CompletionChoice:
    """Makes the objects of one choice."""

    def __init__(
        self,
        index: int,
        sample: Sample,
        echo: str | None,
        view: View,
        names: TokenNames,
        facts: EngineFacts,
        tokenizer: Tokenizer | None,
    ) -> None:
        """`echo`: the prompt's text, which the answer begins with; None: it does not."""
        self._index = index
        self._sample = sample
        self._echo = echo
        self._view = view
        self._names = names
        self._facts = facts
        self._logprobs = CompletionLogprobs(
            self._names,
            tokenizer,
            view.logprobs or 0,
            sample.text.skip_special_tokens,
            sample.request.prompt_ids,
        )
        self._first = True

    def whole(self, result: SampleOutput) -> dict[str, Any]:
        return self._object(result)

    def pieces(self, part: SampleOutput) -> list[dict[str, Any]]:
        if part.text or part.finish is not None or self._view.shows_tokens(part) or self._first:
            return [self._object(part)]
        return []

    def _object(self, part: SampleOutput) -> dict[str, Any]:
        view, first, self._first = self._view, self._first, False
        echo = self._echo if first else None
        logprobs = None
        if view.logprobs is not None:
            prompt = part.prompt_logprobs or () if echo is not None else ()
            logprobs = self._logprobs.object(part.logprobs, prompt, echo or "")
        answer: dict[str, Any] = {
            "index": self._index,
            "text": (echo or "") + part.text,
            "logprobs": logprobs,
        }
        if view.token_ids:
            answer["token_ids"] = part.token_ids
            if first:
                answer["prompt_token_ids"] = self._sample.request.prompt_ids
        if first and view.prompt_logprobs is not None:
            at = part.prompt_logprobs or ()
            answer["prompt_logprobs"] = prompt_logprobs(self._names, at, view.prompt_logprobs)
        return answer | end_fields(self._sample, part, self._facts)


class CompletionRoutes:
    """/v1/completions of one server."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [Route("/v1/completions", self.complete, methods=["POST"])]

    async def complete(self, request: Request) -> Response | ASGIApp:
        front = self._front
        body, common, given = await read_request(front, request, CompletionFields, REFUSED_COMPLETION_FIELDS)
        _check(body)
        limit = DEFAULT_MAX_TOKENS if given.max_tokens is None else given.max_tokens
        prompts = _prompts(body)
        check_count(len(prompts) * min(given.n or 1, MAX_SAMPLES), front.most_samples, "prompt")
        generator = front.generator
        logprobs = _logprob_options(body, common)
        part = output_part(body.response_format, common, NAMES)
        grammar = None if part is None else grammar_of(part)
        requests = []
        with field_names(NAMES):
            params = to_sampling(given, limit)
            for index, prompt in enumerate(prompts):
                ids = prompt
                if isinstance(ids, str):
                    await asyncio.sleep(0)  # others have their turn between two texts of a long list
                    ids = await encode(generator, ids, common.add_special_tokens is not False, "prompt")
                check_length(generator, ids, limit, "prompt")
                rid = "" if common.rid is None else f"{common.rid}_{index}"
                requests.append(generation_request(ids, params, logprobs, common, rid, grammar))
            samples = await generator.prepare_beside(requests, common.rid or "")
        choices = self._choices(generator, samples, prompts, body, common)
        job = Job(samples, choices, make_envelope(front, "text_completion", "cmpl-", common.rid), NAMES)
        return await respond(front, request, job, bool(common.stream), common.stream_options, {})

    def _choices(
        self,
        generator: Generator,
        samples: list[Sample],
        prompts: list[str | list[int]],
        body: CompletionFields,
        common: CommonFields,
    ) -> list[CompletionChoice]:
        tokenizer = generator.tokenizer
        view = View(body.logprobs, common.prompt_logprobs, bool(common.return_token_ids))
        names = TokenNames(tokenizer, bool(common.return_tokens_as_token_ids))
        choices = []
        for index, sample in enumerate(samples):
            echo = None
            if body.echo:
                echo = _text_of(prompts[sample.prompt_index], tokenizer, sample.text.skip_special_tokens)
            choices.append(CompletionChoice(index, sample, echo, view, names, generator.facts, tokenizer))
        return choices


def _text_of(prompt: str | list[int], tokenizer: Tokenizer | None, skip_special_tokens: bool) -> str:
    """A prompt as text; nothing for token ids without a tokenizer."""
    if isinstance(prompt, str):
        return prompt
    return "" if tokenizer is None else tokenizer.decode(prompt, skip_special_tokens)


def _check(body: CompletionFields) -> None:
    if body.best_of not in (None, 0, 1):
        raise RequestError(
            "best_of above 1 is not offered: ask for n samples and choose by their logprobs",
            "best_of",
            "unsupported_value",
        )
    if body.logprobs is not None and body.logprobs < 0:
        raise RequestError("logprobs must not be negative", "logprobs")


def _prompts(body: CompletionFields) -> list[str | list[int]]:
    """One or more prompts, each a text or token ids."""
    prompt = body.prompt
    if prompt is None:
        raise RequestError("give a prompt: text, token ids, or a list of them", "prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("prompt is empty: a prompt needs at least one token", "prompt")
    texts = [entry for entry in prompt if isinstance(entry, str)]
    lists = [entry for entry in prompt if isinstance(entry, list)]
    ids = [entry for entry in prompt if isinstance(entry, int)]
    if len(texts) == len(prompt):
        return list(texts)
    if len(lists) == len(prompt):
        return list(lists)
    if len(ids) == len(prompt):
        return [ids]
    raise RequestError(
        "prompt must hold texts, token ids, or lists of token ids, and one kind only", "prompt"
    )


def _logprob_options(body: CompletionFields, common: CommonFields) -> LogprobOptions:
    scores_prompt = common.prompt_logprobs is not None or (bool(body.echo) and body.logprobs is not None)
    return LogprobOptions(
        output=body.logprobs is not None,
        prompt_start=0 if scores_prompt else -1,
        top=max(body.logprobs or 0, common.prompt_logprobs or 0),
    )
