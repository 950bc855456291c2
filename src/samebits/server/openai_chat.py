"""/v1/chat/completions."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from samebits.engine.messages import EngineFacts
from samebits.generation.samples import Sample, SampleOutput
from samebits.server.answer import call_id
from samebits.server.front import Front
from samebits.server.openai_chat_run import prepare_chat
from samebits.server.openai_common import SHARED_NAMES, read_request
from samebits.server.openai_logprobs import TokenNames, View, chat_logprobs, end_fields, prompt_logprobs
from samebits.server.openai_run import Job, make_envelope, respond
from samebits.server.openai_schema import REFUSED_CHAT_FIELDS, ChatFields
from samebits.text.answer import AnswerDelta, AnswerParser

NAMES = SHARED_NAMES | {"text": "messages", "input_ids": "messages", "top_logprobs_num": "top_logprobs"}
COMPLETION_LIMIT = {"max_new_tokens": "max_completion_tokens"}


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

    def whole(self, result: SampleOutput) -> dict[str, Any]:
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

    def pieces(self, part: SampleOutput) -> list[dict[str, Any]]:
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
        if delta or part.finish is not None or self._view.shows_tokens(part):
            made.append({"index": self._index, "delta": delta} | self._rest(part))
        return made

    def _rest(self, part: SampleOutput) -> dict[str, Any]:
        """What stands beside the message or the delta."""
        view = self._view
        rest: dict[str, Any] = {"logprobs": None}
        if view.logprobs is not None:
            rest["logprobs"] = chat_logprobs(self._names, part.logprobs, view.logprobs)
        if view.token_ids:
            rest["token_ids"] = part.token_ids
        rest |= end_fields(self._sample, part, self._facts)
        if self._parser.calls and rest["finish_reason"] == "stop":
            rest["finish_reason"] = "tool_calls"
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
        return {
            "id": call_id("call_", self._sample, call["number"]),
            "type": "function",
            "function": function,
        }

    def _prompt_logprobs(self, part: SampleOutput) -> list[dict[str, Any] | None]:
        top = self._view.prompt_logprobs or 0
        return prompt_logprobs(self._names, part.prompt_logprobs or (), top)


class ChatRoutes:
    """/v1/chat/completions of one server."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [Route("/v1/chat/completions", self.complete, methods=["POST"])]

    async def complete(self, request: Request) -> Response | ASGIApp:
        front = self._front
        body, common, given = await read_request(front, request, ChatFields, REFUSED_CHAT_FIELDS)
        names = NAMES if body.max_completion_tokens is None else NAMES | COMPLETION_LIMIT
        chat = await prepare_chat(front, body, common, given, names)
        view = View(
            (body.top_logprobs or 0) if body.logprobs else None,
            common.prompt_logprobs,
            bool(common.return_token_ids),
        )
        facts = front.generator.facts
        tokens = TokenNames(front.generator.tokenizer, bool(common.return_tokens_as_token_ids))
        choices = [
            ChatChoice(index, sample, view, tokens, chat.prompt.parser(), facts)
            for index, sample in enumerate(chat.samples)
        ]
        envelope = make_envelope(front, "chat.completion", "chatcmpl-", common.rid)
        job = Job(chat.samples, choices, envelope, names)
        more = {"prompt_token_ids": chat.prompt_ids} if common.return_token_ids else {}
        return await respond(front, request, job, bool(common.stream), common.stream_options, more)
