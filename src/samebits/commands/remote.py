"""A running server as the commands use it: chats through whichever door it opens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samebits.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from samebits.text.chat import ChatTemplate
    from samebits.text.tokenizer import Tokenizer
    from samebits.verify.http import Client

Message = Mapping[str, str]


def connect(url: str, api_key: str = "") -> NativeServer | OpenAiServer:
    """The server at `url`: OpenAI's chat route where it has one, else `/generate`.

    Raises `ConfigError` where it has neither, `EngineError` where nobody answers.
    """
    from samebits.verify.http import Client

    client = Client(url, api_key)
    models = client.probe("/v1/models")
    if isinstance(models, dict) and models.get("data"):
        return OpenAiServer(client, models["data"][0]["id"])
    facts = client.probe("/model_info")
    if isinstance(facts, dict):
        return NativeServer(client, facts)
    raise ConfigError(f"{client.url} offers neither /v1/chat/completions nor /model_info and /generate")


@dataclass(frozen=True)
class OpenAiServer:
    """A server that renders chats itself."""

    client: Client
    model: str

    def reply(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Iterator[str]:
        """The answer, piece by piece as it comes. `sampling` has OpenAI's names."""
        body = {"model": self.model, "messages": list(messages), "stream": True, **sampling}
        if "max_new_tokens" in body:
            body["max_tokens"] = body.pop("max_new_tokens")
        for event in self.client.stream("/v1/chat/completions", body):
            for choice in event.get("choices", ()):
                yield choice.get("delta", {}).get("content") or ""


@dataclass(frozen=True)
class NativeServer:
    """A server with `/generate`: the chat template is applied here, out of the checkpoint's folder."""

    client: Client
    facts: Mapping[str, Any]

    def text_parts(self) -> tuple[Tokenizer | None, ChatTemplate | None]:
        """Tokenizer and chat template of the server's checkpoint; its folder must be on this machine."""
        from samebits.text.chat import load_chat_template
        from samebits.text.tokenizer import load_tokenizer

        folder = self.facts.get("tokenizer_path", "")
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            return None, None
        return tokenizer, load_chat_template(folder, tokenizer.named_tokens)

    def prompt(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The part of a `/generate` body that holds the conversation.

        A checkpoint without a template gets the last message as plain text; one without a tokenizer, as bytes.
        """
        tokenizer, template = self.text_parts()
        text = messages[-1]["content"]
        if tokenizer is None:
            vocabulary = int(self.facts["vocab_size"])
            return {"input_ids": [byte % vocabulary for byte in text.encode()]}
        if template is None:
            return {"text": text}
        return {"input_ids": tokenizer.encode(template.render(messages), add_special_tokens=False)}

    def reply(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Iterator[str]:
        """The answer, piece by piece as it comes."""
        params = dict(sampling)
        if "seed" in params:
            params["sampling_seed"] = params.pop("seed")
        body = {**self.prompt(messages), "sampling_params": params, "stream": True, "incremental": True}
        for event in self.client.stream("/generate", body):
            if "error" in event:
                raise EngineError(json.dumps(event["error"]))
            yield event["text"]
