"""What the OpenAI routes share on a request's way in: names, checks, parameters, token ids."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import msgspec
from starlette.requests import Request

from samebits.engine.messages import LogprobOptions
from samebits.errors import RequestError
from samebits.generation.generator import Generator
from samebits.generation.samples import GenerationRequest
from samebits.grammar.language import Grammar
from samebits.sampling_params import MAX_TOP_LOGPROBS, SamplingParams
from samebits.server.fields import Body
from samebits.server.front import Front
from samebits.server.http import NotFoundError, read_body
from samebits.server.native import to_params
from samebits.server.openai_schema import INERT_FIELDS, CommonFields, SamplingFields, decode_request
from samebits.server.schema import NativeSampling
from samebits.text.tokenizer import LONG_TEXT

SHARED_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "no_stop_trim": "include_stop_str_in_output",
}
"""OpenAI's names, by /generate's"""
OWN_NAMES = ("max_tokens", "min_tokens", "seed", "include_stop_str_in_output")
ANY_MODEL = ("", "default")
"""names that clients send when they mean the only model"""


async def read_request(
    front: Front,
    request: Request,
    kind: type[Body],
    refused: Mapping[str, str],
    inert: Mapping[str, str] = INERT_FIELDS,
) -> tuple[Body, CommonFields, SamplingFields]:
    """The body of a route whose own fields are `kind`, with the shared fields checked.

    Raises `RequestError` naming the field, `UnavailableError` unless requests are taken.
    """
    front.check_ready()
    data = await read_body(request, front.body_limit)
    body, common, given = decode_request(data, kind, refused, inert)
    check_model(front, common.model)
    check_common(common, given)
    return body, common, given


def generation_request(
    ids: Sequence[int],
    params: SamplingParams,
    logprobs: LogprobOptions,
    common: CommonFields,
    rid: str,
    grammar: Grammar | None = None,
) -> GenerationRequest:
    """One prompt with what the shared fields say about how it is run."""
    return GenerationRequest(
        prompt=ids,
        params=params,
        logprobs=logprobs,
        rid=rid,
        priority=common.priority or 0,
        use_prefix_cache=common.use_prefix_cache is not False,
        deadline_seconds=common.deadline_seconds,
        grammar=grammar,
    )


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
    if (common.prompt_logprobs or 0) > MAX_TOP_LOGPROBS:
        raise RequestError(f"prompt_logprobs must lie in [0, {MAX_TOP_LOGPROBS}]", "prompt_logprobs")


def check_single(common: CommonFields, given: SamplingFields) -> None:
    """Raise `RequestError` for shared fields that mean nothing where a response is one answer to one chat."""
    if given.n not in (None, 1):
        refuse("n", "a response holds one answer; /v1/chat/completions has n")
    if common.prompt_logprobs is not None:
        refuse("prompt_logprobs", "/v1/chat/completions and /v1/completions have them")


def refuse(field: str, reason: str) -> NoReturn:
    """Refuse a field that other routes take."""
    raise RequestError(f"{field} is not offered on this route: {reason}", field, "unsupported_parameter")


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
        if len(text) > LONG_TEXT:
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
