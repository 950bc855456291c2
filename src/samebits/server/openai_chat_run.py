"""From a chat to samples that are ready to run. Every route that takes chats comes through here, in the words of
/v1/chat/completions: what is offered there is offered everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from samebits.engine.messages import LogprobOptions
from samebits.errors import RequestError
from samebits.generation.samples import Sample
from samebits.server.front import Front
from samebits.server.openai_common import (
    check_length,
    encode,
    field_names,
    generation_request,
    to_sampling,
)
from samebits.server.openai_prompt import ChatPrompt, chat_prompt
from samebits.server.openai_schema import ChatFields, CommonFields, SamplingFields


@dataclass(frozen=True)
class PreparedChat:
    """A chat that is ready to run."""

    prompt: ChatPrompt
    prompt_ids: Sequence[int]
    samples: Sequence[Sample]


async def prepare_chat(
    front: Front, body: ChatFields, common: CommonFields, given: SamplingFields, names: Mapping[str, str]
) -> PreparedChat:
    """Check a chat, render and tokenize it. `names` are the route's words, by /generate's field names.

    Raises `RequestError` naming the field.
    """
    _check(body)
    generator = front.generator
    prompt = chat_prompt(front, body, common, names)
    ids = await encode(generator, prompt.text, bool(common.add_special_tokens), names["text"])
    limit = _limit(body, given)
    check_length(generator, ids, limit, names["text"])
    if limit is None:
        limit = max(1, min(generator.facts.context_length, generator.facts.kv_tokens) - len(ids))
    with field_names(names):
        request = generation_request(
            ids,
            to_sampling(given, limit),
            _logprob_options(body, common),
            common,
            common.rid or "",
            prompt.grammar,
        )
        samples = await generator.prepare_beside([request], common.rid or "")
    return PreparedChat(prompt, ids, samples)


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
