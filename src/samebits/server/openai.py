"""The OpenAI API of one server: /v1/models, /tokenize, /detokenize, and what is not offered; completions and
chats have files of their own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from samebits.errors import RequestError
from samebits.server.front import Front
from samebits.server.http import NotFoundError, json_response, read_body
from samebits.server.openai_chat import ChatRoutes
from samebits.server.openai_common import check_model, encode
from samebits.server.openai_completions import CompletionRoutes
from samebits.server.openai_logprobs import TokenNames
from samebits.server.openai_prompt import tokenize_prompt
from samebits.server.openai_schema import DetokenizeFields, TokenizeFields, decode_small
from samebits.server.responses import ResponsesRoutes
from samebits.text.tokenizer import LONG_TEXT

NOT_OFFERED = {
    "assistants": "assistants",
    "audio": "audio",
    "batches": "batches over HTTP",
    "containers": "containers",
    "conversations": "stored conversations",
    "embeddings": "embeddings",
    "evals": "evaluations",
    "files": "files",
    "fine_tuning": "fine-tuning",
    "images": "images",
    "moderations": "moderation",
    "realtime": "realtime sessions",
    "rerank": "reranking",
    "score": "scoring of pairs",
    "threads": "threads",
    "uploads": "uploads",
    "vector_stores": "vector stores",
    "videos": "video",
}
"""What clients know below /v1, and what it would be for."""
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class OpenAIRoutes:
    """Every route in OpenAI's shape."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        own = [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
        ]
        for prefix in ("", "/v1"):
            own.append(Route(prefix + "/tokenize", self.tokenize, methods=["POST"]))
            own.append(Route(prefix + "/detokenize", self.detokenize, methods=["POST"]))
        refused = [
            Route(f"/v1/{name}{rest}", partial(_not_offered, what), methods=METHODS, include_in_schema=False)
            for name, what in NOT_OFFERED.items()
            for rest in ("", "/{path:path}")
        ]
        front = self._front
        own += CompletionRoutes(front).routes() + ChatRoutes(front).routes() + ResponsesRoutes(front).routes()
        return [*own, *refused]

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        model = self._model()
        check_model(self._front, request.path_params["name"])
        return json_response(model)

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a prompt, or of a chat as its template renders it."""
        generator = self._front.generator
        data = await read_body(request, self._front.body_limit)
        body = decode_small(data, TokenizeFields)
        check_model(self._front, body.model)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("give either prompt or messages", "prompt")
        if body.prompt is not None:
            special = body.add_special_tokens is not False
            ids = await encode(generator, body.prompt, special, "prompt") if body.prompt else []
        else:
            special = bool(body.add_special_tokens)
            ids = await encode(generator, tokenize_prompt(self._front, body), special, "messages")
        answer: dict[str, Any] = {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": generator.facts.context_length,
        }
        if body.return_token_strs:
            names = TokenNames(generator.tokenizer)
            answer["token_strs"] = [names.name(token_id) for token_id in ids]
        return json_response(answer)

    async def detokenize(self, request: Request) -> Response:
        """Text of token ids, special tokens among them, under vLLM's name and SGLang's."""
        generator = self._front.generator
        data = await read_body(request, self._front.body_limit)
        body = decode_small(data, DetokenizeFields)
        check_model(self._front, body.model)
        if generator.tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer", "tokens")
        vocabulary = generator.facts.vocabulary
        wrong = [token_id for token_id in body.tokens if not 0 <= token_id < vocabulary]
        if wrong:
            raise RequestError(f"tokens holds {wrong[0]}, outside the vocabulary [0, {vocabulary})", "tokens")
        skips = bool(body.skip_special_tokens)
        if len(body.tokens) > LONG_TEXT:
            text = await asyncio.to_thread(generator.tokenizer.decode, body.tokens, skips)
        else:
            text = generator.tokenizer.decode(body.tokens, skips)
        return json_response({"prompt": text, "text": text})

    def _model(self) -> dict[str, Any]:
        """The model in OpenAI's shape, with what Anthropic's clients look for."""
        facts = self._front.generator.facts
        started = self._front.started_at
        return {
            "id": self._front.model_name,
            "object": "model",
            "type": "model",
            "display_name": self._front.model_name,
            "created": int(started),
            "created_at": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "owned_by": "samebits",
            "root": facts.model,
            "parent": None,
            "max_model_len": facts.context_length,
            "fingerprint": facts.fingerprint,
        }


async def _not_offered(what: str, request: Request) -> Response:
    message = f"{request.url.path}: this server does not offer {what}"
    raise NotFoundError(message, code="unsupported_endpoint")
