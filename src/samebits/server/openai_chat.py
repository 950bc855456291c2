"""/v1/chat/completions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from samebits.engine.messages import EngineFacts, LogprobOptions
from samebits.errors import RequestError
from samebits.generation.generator import Generator
from samebits.generation.samples import GenerationRequest, Sample, SampleResult
from samebits.server.front import Front
from samebits.server.http import (
    CLIENT_CLOSED_REQUEST,
    EventStream,
    json_error_frame,
    json_response,
    read_body,
    until_disconnect,
)
from samebits.server.openai_common import (
    check_common,
    check_length,
    check_model,
    encode,
    field_names,
    make_envelope,
    run_stream,
    run_whole,
    to_sampling,
)
from samebits.server.openai_logprobs import (
    TokenNames,
    chat_logprobs,
    finish_fields,
    prompt_logprobs,
    replay_facts,
)
from samebits.server.openai_prompt import ChatPrompt, chat_prompt
from samebits.server.openai_schema import (
    REFUSED_CHAT_FIELDS,
    ChatFields,
    CommonFields,
    SamplingFields,
    decode_request,
)
from samebits.text.answer import AnswerDelta, AnswerParser

NAMES = {
    "text": "messages",
    "input_ids": "messages",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "top_logprobs_num": "top_logprobs",
    "no_stop_trim": "include_stop_str_in_output",
}


@dataclass(frozen=True)
class View:
    """Which parts of a sample a choice shows."""

    logprobs: int | None
    """this many likely tokens beside each token; None: no logprobs"""
    prompt_logprobs: int | None
    token_ids: bool


class ChatChoice:
    """Makes the objects of one choice."""

    def __init__(
        self,
        index: int,
        sample: Sample,
        view: View,
        names: TokenNames,
        parser: AnswerParser,
        facts: EngineFacts,
    ) -> None:
        self._index = index
        self._sample = sample
        self._view = view
        self._names = names
        self._parser = parser
        self._facts = facts
        self._first = True

    def whole(self, result: SampleResult) -> dict[str, Any]:
        answer = self._parser.push(result.text, last=True)
        calls = [self._call(call) for call in self._joined(answer)]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.content if answer.content or not calls else None,
            "refusal": None,
        }
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if calls:
            message["tool_calls"] = calls
        choice = {"index": self._index, "message": message}
        if self._view.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs(result)
        return choice | self._rest(result)

    def pieces(self, part: SampleResult) -> list[dict[str, Any]]:
        made = []
        if self._first:
            self._first = False
            opening: dict[str, Any] = {
                "index": self._index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            if self._view.token_ids:
                opening["prompt_token_ids"] = self._sample.request.prompt_ids
            if self._view.prompt_logprobs is not None:
                opening["prompt_logprobs"] = self._prompt_logprobs(part)
            made.append(opening)
        delta = self._delta(self._parser.push(part.text, last=part.finish is not None))
        shows_tokens = bool(part.token_ids) and (self._view.token_ids or self._view.logprobs is not None)
        if delta or part.finish is not None or shows_tokens:
            made.append({"index": self._index, "delta": delta} | self._rest(part))
        return made

    def _rest(self, part: SampleResult) -> dict[str, Any]:
        """What stands beside the message or the delta."""
        view = self._view
        rest: dict[str, Any] = {"logprobs": None, "finish_reason": None}
        if view.logprobs is not None:
            rest["logprobs"] = chat_logprobs(self._names, part.logprobs, view.logprobs)
        if view.token_ids:
            rest["token_ids"] = part.token_ids
        if part.finish is not None:
            rest.update(finish_fields(part.finish, self._facts))
            if self._parser.calls and part.finish.type == "stop":
                rest["finish_reason"] = "tool_calls"
            rest["samebits"] = replay_facts(self._sample, part)
        return rest

    def _delta(self, news: AnswerDelta) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if news.reasoning:
            delta["reasoning_content"] = news.reasoning
        if news.content:
            delta["content"] = news.content
        if news.calls:
            delta["tool_calls"] = [
                {"index": call["number"], **self._call(call)} for call in self._joined(news)
            ]
        return delta

    @staticmethod
    def _joined(news: AnswerDelta) -> list[dict[str, Any]]:
        """The news of each call in one piece."""
        found: dict[int, dict[str, Any]] = {}
        for call in news.calls:
            entry = found.setdefault(call.number, {"number": call.number, "name": None, "arguments": ""})
            entry["name"] = call.name or entry["name"]
            entry["arguments"] += call.arguments
        return list(found.values())

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call, or more arguments for one that the client knows."""
        function = {"arguments": call["arguments"]}
        if call["name"] is None:
            return {"function": function}
        function = {"name": call["name"], **function}
        return {"id": self._call_id(call["number"]), "type": "function", "function": function}

    def _call_id(self, number: int) -> str:
        """An id that follows from the request, so that a replayed conversation is the same to its last character."""
        sampling = self._sample.request.sampling
        seen = [self._sample.request.prompt_ids, sampling.seed, sampling.sample_index, number]
        return "call_" + hashlib.sha256(msgspec.json.encode(seen)).hexdigest()[:24]

    def _prompt_logprobs(self, part: SampleResult) -> list[dict[str, Any] | None]:
        top = self._view.prompt_logprobs or 0
        return prompt_logprobs(self._names, part.prompt_logprobs or (), top)


class ChatRoutes:
    """/v1/chat/completions of one server."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [Route("/v1/chat/completions", self.complete, methods=["POST"])]

    async def complete(self, request: Request) -> Response | ASGIApp:
        generator = self._front.generator
        data = await read_body(request, self._front.body_limit)
        body, common, given = decode_request(data, ChatFields, REFUSED_CHAT_FIELDS)
        check_model(self._front, common.model)
        check_common(common, given)
        _check(body)
        prompt = chat_prompt(self._front, body, common)
        ids = await encode(generator, prompt.text, bool(common.add_special_tokens), "messages")
        limit = _limit(body, given)
        check_length(generator, ids, limit, "messages")
        if limit is None:
            limit = max(1, min(generator.facts.context_length, generator.facts.kv_tokens) - len(ids))
        names = NAMES if body.max_completion_tokens is None else NAMES | COMPLETION_LIMIT
        with field_names(names):
            generation = GenerationRequest(
                prompt=ids,
                params=to_sampling(given, limit),
                logprobs=_logprob_options(body, common),
                rid=common.rid or "",
                priority=common.priority or 0,
                use_prefix_cache=common.use_prefix_cache is not False,
                grammar=prompt.grammar,
            )
            samples = await generator.prepare_beside([generation], common.rid or "")
        choices = _choices(generator, samples, body, common, prompt)
        envelope = make_envelope(self._front, "chat.completion", "chatcmpl-", common.rid)
        if common.stream:
            frames = run_stream(generator, samples, choices, envelope, common, names)
            return EventStream(frames, json_error_frame)
        done = await until_disconnect(request.receive, run_whole(generator, samples, choices, names))
        if done is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        answer = envelope.head() | {"choices": done[0], "usage": done[1]}
        if common.return_token_ids:
            answer["prompt_token_ids"] = ids
        return json_response(answer)


COMPLETION_LIMIT = {"max_new_tokens": "max_completion_tokens"}


def _check(body: ChatFields) -> None:
    if body.modalities not in (None, [], ["text"]):
        raise RequestError("modalities other than text are not offered", "modalities", "unsupported_value")
    if body.top_logprobs is not None and body.top_logprobs < 0:
        raise RequestError("top_logprobs must not be negative", "top_logprobs")
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")


def _limit(body: ChatFields, given: SamplingFields) -> int | None:
    """Most output tokens; None: as many as fit."""
    if body.max_completion_tokens is None:
        return given.max_tokens
    if given.max_tokens not in (None, body.max_completion_tokens):
        message = "max_tokens and max_completion_tokens are two names of one thing and differ"
        raise RequestError(message, "max_tokens")
    return body.max_completion_tokens


def _logprob_options(body: ChatFields, common: CommonFields) -> LogprobOptions:
    return LogprobOptions(
        output=bool(body.logprobs),
        prompt_start=-1 if common.prompt_logprobs is None else 0,
        top=max(body.top_logprobs or 0, common.prompt_logprobs or 0),
    )


def _choices(
    generator: Generator,
    samples: Sequence[Sample],
    body: ChatFields,
    common: CommonFields,
    prompt: ChatPrompt,
) -> list[ChatChoice]:
    view = View(
        (body.top_logprobs or 0) if body.logprobs else None,
        common.prompt_logprobs,
        bool(common.return_token_ids),
    )
    names = TokenNames(generator.tokenizer, bool(common.return_tokens_as_token_ids))
    return [
        ChatChoice(index, sample, view, names, prompt.parser(), generator.facts)
        for index, sample in enumerate(samples)
    ]
