"""Answers in the shape of /v1/messages: the message, its blocks, the events of a stream, and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from samebits.engine.messages import EngineFacts
from samebits.generation.samples import SampleOutput
from samebits.server.answer import GrowingAnswer, call_id
from samebits.server.fields import decode_json
from samebits.server.http import anthropic_error, error_parts, typed_frame
from samebits.text.blocks import Block, BlockEvent, Change


class MessageWriter:
    """Writes one answer as a message, whole or event by event."""

    def __init__(
        self,
        own_id: str,
        model: str,
        facts: EngineFacts,
        answer: GrowingAnswer,
        with_tokens: bool,
        warnings: list[str],
    ) -> None:
        self._id = "msg_" + own_id
        self._model = model
        self._facts = facts
        self._answer = answer
        self._with_tokens = with_tokens
        self._warnings = warnings
        self._begun = False

    def whole(self, result: SampleOutput) -> dict[str, Any]:
        """The message."""
        warnings: list[str] = []
        self._answer.push(result)
        content = [self._content(block, warnings) for block in self._answer.blocks]
        return (
            self._message(content)
            | self._end()
            | {"usage": self._usage(), "samebits": self._replay(warnings)}
        )

    def frames(self, part: SampleOutput) -> Iterator[bytes]:
        """The events that say what is new."""
        changes = self._answer.push(part)
        if not self._begun:
            self._begun = True
            start = self._message([]) | {"stop_reason": None, "stop_sequence": None}
            usage = self._usage() | {"output_tokens": 0}
            yield typed_frame({"type": "message_start", "message": start | {"usage": usage}})
        for change in changes:
            yield from self._block_frames(change)
        if part.finish is not None:
            end = {"delta": self._end(), "usage": self._usage(), "samebits": self._replay([])}
            yield typed_frame({"type": "message_delta", **end})
            yield typed_frame({"type": "message_stop"})

    def error_frame(self, error: Exception) -> bytes:
        """The last event of a stream that failed on its way."""
        status, body, _ = error_parts(error)
        return typed_frame(anthropic_error(status, body))

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "system_fingerprint": self._facts.fingerprint,
            "content": content,
        }

    def _content(self, block: Block, warnings: list[str]) -> dict[str, Any]:
        """A finished block. Arguments that are no JSON object are told of in `warnings`, for `input` must be one."""
        content = self._opening(block)
        match block.kind:
            case "reasoning":
                content["thinking"] = block.text
            case "text":
                content["text"] = block.text
            case _:
                arguments = _object(block.text)
                if arguments is None:
                    warnings.append(f"the input of {content['id']} is no JSON object: {block.text}")
                content["input"] = arguments or {}
        return content

    def _opening(self, block: Block) -> dict[str, Any]:
        match block.kind:
            case "reasoning":
                return {"type": "thinking", "thinking": "", "signature": ""}
            case "text":
                return {"type": "text", "text": "", "citations": None}
            case _:
                own = call_id("toolu_", self._answer.sample, block.number)
                return {"type": "tool_use", "id": own, "name": block.name, "input": {}}

    def _block_frames(self, event: BlockEvent) -> Iterator[bytes]:
        index = event.block.index
        match event.change:
            case Change.OPENED:
                block = self._opening(event.block)
                yield typed_frame({"type": "content_block_start", "index": index, "content_block": block})
            case Change.GREW:
                kinds = {
                    "reasoning": ("thinking_delta", "thinking"),
                    "text": ("text_delta", "text"),
                    "call": ("input_json_delta", "partial_json"),
                }
                kind, field = kinds[event.block.kind]
                delta = {"type": kind, field: event.text}
                yield typed_frame({"type": "content_block_delta", "index": index, "delta": delta})
            case Change.CLOSED:
                yield typed_frame({"type": "content_block_stop", "index": index})

    def _end(self) -> dict[str, Any]:
        """`stop_reason` and `stop_sequence`."""
        finish = self._answer.finish
        assert finish is not None
        reason: str = {"length": "max_tokens", "deadline": "abort"}.get(finish.type, finish.type)
        sequence = None
        if finish.type == "stop":
            own_end = isinstance(finish.matched, int) and finish.matched in self._facts.eos_token_ids
            reason = "end_turn" if own_end or finish.matched is None else "stop_sequence"
            sequence = finish.matched if isinstance(finish.matched, str) else None
            if self._answer.has_calls:
                reason, sequence = "tool_use", None
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _usage(self) -> dict[str, Any]:
        """As Anthropic counts: what the cache had is no part of the input."""
        counts = self._answer.counts()
        return {
            "input_tokens": counts.prompt - counts.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts.cached,
            "output_tokens": counts.output,
            "output_tokens_details": {"thinking_tokens": counts.thoughts},
        }

    def _replay(self, warnings: list[str]) -> dict[str, Any]:
        facts = self._answer.replay(self._with_tokens)
        return facts | {"warnings": [*facts["warnings"], *self._warnings, *warnings]}


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = decode_json(text.encode()) if text.strip() else {}
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
