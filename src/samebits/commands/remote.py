"""A running server as the commands use it: chats through whichever door it opens."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samebits.client import listed_model
from samebits.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from samebits.text.chat import ChatTemplate
    from samebits.text.tokenizer import Tokenizer
    from samebits.verify.http import Client

Message = Mapping[str, str]
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


def connect(url: str, api_key: str = "") -> NativeServer | OpenAiServer:
    """The server at `url`: OpenAI's chat route where it has one, else `/generate`.

    Raises `ConfigError` where it has neither, `EngineError` where nobody answers.
    """
    from samebits.verify.http import Client

    client = Client(url, api_key)
    if model := listed_model(client.probe("/v1/models")):
        return OpenAiServer(client, model["id"])
    facts = client.probe("/model_info")
    if isinstance(facts, dict):
        return NativeServer(client, facts)
    raise ConfigError(f"{client.url} offers neither /v1/chat/completions nor /model_info and /generate")


@dataclass(frozen=True)
class OpenAiServer:
    """A server that renders chats itself."""

    client: Client
    model: str

    def reply(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[str, None, None]:
        """The answer, piece by piece as it comes, thoughts between the tags that the server took off.

        `sampling` has our names. Raises `EngineError` with the server's words, or where the answer breaks off.
        """
        body = {"model": self.model, "messages": list(messages), "stream": True}
        body |= {OPENAI_NAMES.get(name, name): value for name, value in sampling.items()}
        thinking = ended = False
        with closing(self.client.stream("/v1/chat/completions", body)) as events:
            for event in events:
                if "error" in event:
                    raise EngineError(f"{self.client.url} failed: {json.dumps(event['error'])}")
                for choice in event.get("choices", ()):
                    ended = ended or choice.get("finish_reason") is not None
                    delta = choice.get("delta", {})
                    thought = delta.get("reasoning_content") or delta.get("reasoning")
                    if thought:
                        yield thought if thinking else f"<think>\n{thought}"
                        thinking = True
                    if delta.get("content"):
                        yield f"\n</think>\n\n{delta['content']}" if thinking else delta["content"]
                        thinking = False
        if not ended:
            raise EngineError(f"{self.client.url} broke the answer off")


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

    def reply(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[str, None, None]:
        """The answer, piece by piece as it comes."""
        params = dict(sampling)
        if "seed" in params:
            params["sampling_seed"] = params.pop("seed")
        body = {**self.prompt(messages), "sampling_params": params, "stream": True, "incremental": True}
        for event in self.client.stream("/generate", body):
            if "error" in event:
                raise EngineError(json.dumps(event["error"]))
            yield event["text"]
