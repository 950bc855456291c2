"""/v1/completions."""

from __future__ import annotations

from dataclasses import dataclass
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
from samebits.server.front import Front
from samebits.server.openai_common import (
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
    finish_fields,
    prompt_logprobs,
    replay_facts,
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
NAMES = {
    "text": "prompt",
    "input_ids": "prompt",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "top_logprobs_num": "logprobs",
    "no_stop_trim": "include_stop_str_in_output",
}


@dataclass(frozen=True)
class View:
    """Which parts of a sample a choice shows."""

    echo: bool
    logprobs: int | None
    """this many likely tokens beside each token; None: no logprobs"""
    prompt_logprobs: int | None
    token_ids: bool
    names_as_ids: bool


class CompletionChoice:
    """Makes the objects of one choice."""

    def __init__(
        self,
        index: int,
        sample: Sample,
        prompt_text: str,
        view: View,
        facts: EngineFacts,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._index = index
        self._sample = sample
        self._prompt_text = prompt_text
        self._view = view
        self._facts = facts
        self._names = TokenNames(tokenizer, view.names_as_ids)
        self._logprobs = CompletionLogprobs(
            self._names, tokenizer, view.logprobs or 0, sample.text.skip_special_tokens
        )
        self._first = True

    def whole(self, result: SampleOutput) -> dict[str, Any]:
        return self._object(result)

    def pieces(self, part: SampleOutput) -> list[dict[str, Any]]:
        shows_tokens = bool(part.token_ids) and (self._view.token_ids or self._view.logprobs is not None)
        if part.text or part.finish is not None or shows_tokens or self._first:
            return [self._object(part)]
        return []

    def _object(self, part: SampleOutput) -> dict[str, Any]:
        view, first, self._first = self._view, self._first, False
        echoed = first and view.echo
        logprobs = None
        if view.logprobs is not None:
            prompt = part.prompt_logprobs or () if echoed else ()
            logprobs = self._logprobs.object([*prompt, *part.logprobs])
        answer: dict[str, Any] = {
            "index": self._index,
            "text": self._prompt_text + part.text if echoed else part.text,
            "logprobs": logprobs,
            "finish_reason": None,
        }
        if view.token_ids:
            answer["token_ids"] = part.token_ids
            if first:
                answer["prompt_token_ids"] = self._sample.request.prompt_ids
        if first and view.prompt_logprobs is not None:
            at = part.prompt_logprobs or ()
            answer["prompt_logprobs"] = prompt_logprobs(self._names, at, view.prompt_logprobs)
        if part.finish is not None:
            answer.update(finish_fields(part.finish, self._facts))
            answer["samebits"] = replay_facts(self._sample, part)
        return answer


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
        view = View(
            bool(body.echo),
            body.logprobs,
            common.prompt_logprobs,
            bool(common.return_token_ids),
            bool(common.return_tokens_as_token_ids),
        )
        choices = []
        for index, sample in enumerate(samples):
            prompt = prompts[sample.prompt_index]
            text = prompt if isinstance(prompt, str) else ""
            if view.echo and not isinstance(prompt, str) and generator.tokenizer is not None:
                text = generator.tokenizer.decode(prompt, sample.text.skip_special_tokens)
            choices.append(CompletionChoice(index, sample, text, view, generator.facts, generator.tokenizer))
        return choices


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
