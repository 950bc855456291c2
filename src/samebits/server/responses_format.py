"""Answers in the shape of /v1/responses: the response object, its items, and the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from samebits.generation.samples import SampleOutput
from samebits.server.answer import GrowingAnswer, call_id
from samebits.server.front import Front
from samebits.server.http import error_parts, typed_frame
from samebits.server.openai_logprobs import TokenNames, chat_logprobs
from samebits.server.responses_schema import ResponsesFields
from samebits.text.blocks import Block, BlockEvent, Change

PREFIXES = {"reasoning": "rs_", "text": "msg_", "call": "fc_"}


@dataclass(frozen=True)
class ResponseHead:
    """What a response says from its first event to its last."""

    id: str
    fields: dict[str, Any]


def response_head(front: Front, body: ResponsesFields, answer: GrowingAnswer, own_id: str) -> ResponseHead:
    """The head of the response to `body`, whose id ends with `own_id`."""
    sampling = answer.sample.request.sampling
    reasoning = body.reasoning
    chosen = None if body.text is None else body.text.format
    fields = {
        "id": "resp_" + own_id,
        "object": "response",
        "created_at": int(time.time()),
        "model": front.model_name,
        "system_fingerprint": front.engine.facts.fingerprint,
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if reasoning is None else reasoning.effort, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": chosen or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
    }
    return ResponseHead(own_id, fields)


class ResponseWriter:
    """Writes one answer as a response, whole or event by event."""

    def __init__(
        self,
        head: ResponseHead,
        answer: GrowingAnswer,
        names: TokenNames,
        top_logprobs: int | None,
        with_tokens: bool,
    ) -> None:
        """`top_logprobs`: this many likely tokens beside each token; None: no logprobs."""
        self._head = head
        self._answer = answer
        self._names = names
        self._top = top_logprobs
        self._with_tokens = with_tokens
        self._logprobs: list[dict[str, Any]] = []
        self._shown_logprobs = 0
        self._numbers = 0
        self._begun = False

    def whole(self, result: SampleOutput) -> dict[str, Any]:
        """The response."""
        self._take(result)
        return self._response()

    def frames(self, part: SampleOutput) -> Iterator[bytes]:
        """The events that say what is new."""
        if not self._begun:
            self._begun = True
            yield self._frame("response.created", response=self._response())
            yield self._frame("response.in_progress", response=self._response())
        for event in self._take(part):
            yield from self._block_frames(event)
        if part.finish is not None:
            end = "completed" if self._status() == "completed" else "incomplete"
            yield self._frame(f"response.{end}", response=self._response())

    def error_frame(self, error: Exception) -> bytes:
        """The last event of a stream that failed on its way."""
        message = error_parts(error)[1]["error"]["message"]
        failed = self._response() | {
            "status": "failed",
            "error": {"code": "server_error", "message": message},
        }
        return self._frame("response.failed", response=failed)

    def _take(self, part: SampleOutput) -> list[BlockEvent]:
        if self._top is not None:
            self._logprobs += chat_logprobs(self._names, part.logprobs, self._top)["content"]
        return self._answer.push(part)

    def _response(self) -> dict[str, Any]:
        status = self._status()
        finish = self._answer.finish
        response = self._head.fields | {
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": None,
            "output": [self._item(block, self._ended(block)) for block in self._answer.blocks],
            "usage": None,
        }
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if finish is not None:
            response["usage"] = self._usage()
            response["samebits"] = self._answer.replay(self._with_tokens)
        return response

    def _status(self) -> str:
        finish = self._answer.finish
        if finish is None:
            return "in_progress"
        return {"stop": "completed", "length": "incomplete"}.get(finish.type, "cancelled")

    def _ended(self, block: Block) -> str:
        """Status of an item that does not grow any more."""
        is_last = block is self._answer.blocks[-1]
        return "incomplete" if is_last and self._status() != "completed" else "completed"

    def _usage(self) -> dict[str, Any]:
        counts = self._answer.counts()
        return {
            "input_tokens": counts.prompt,
            "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
            "output_tokens": counts.output,
            "output_tokens_details": {"reasoning_tokens": counts.thoughts},
            "total_tokens": counts.prompt + counts.output,
        }

    def _item_id(self, block: Block) -> str:
        return f"{PREFIXES[block.kind]}{self._head.id}_{block.index}"

    def _item(self, block: Block, status: str, begun: bool = True) -> dict[str, Any]:
        """The item of a block, without its content where it is only announced."""
        own = {"id": self._item_id(block), "status": status}
        match block.kind:
            case "reasoning":
                content = [{"type": "reasoning_text", "text": block.text}] if begun else []
                return own | {"type": "reasoning", "summary": [], "content": content}
            case "text":
                content = [self._text_part(block.text, self._logprobs)] if begun else []
                return own | {"type": "message", "role": "assistant", "content": content}
            case _:
                return own | {
                    "type": "function_call",
                    "call_id": call_id("call_", self._answer.sample, block.number),
                    "name": block.name,
                    "arguments": block.text if begun else "",
                }

    @staticmethod
    def _text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _block_frames(self, event: BlockEvent) -> Iterator[bytes]:
        block = event.block
        place: dict[str, Any] = {"item_id": self._item_id(block), "output_index": block.index}
        kinds = {"reasoning": "reasoning_text", "text": "output_text", "call": "function_call_arguments"}
        kind = f"response.{kinds[block.kind]}"
        if block.kind != "call":
            place["content_index"] = 0
        match event.change:
            case Change.OPENED:
                item = self._item(block, "in_progress", begun=False)
                yield self._frame("response.output_item.added", output_index=block.index, item=item)
                if block.kind != "call":
                    part = self._part(block, "", [])
                    yield self._frame("response.content_part.added", **place, part=part)
            case Change.GREW:
                yield self._frame(f"{kind}.delta", **place, delta=event.text, **self._new_logprobs(block))
            case Change.CLOSED:
                yield from self._closing_frames(block, kind, place)

    def _closing_frames(self, block: Block, kind: str, place: dict[str, Any]) -> Iterator[bytes]:
        rest = self._new_logprobs(block)
        if rest.get("logprobs"):  # of tokens without text of their own, such as the end's
            yield self._frame(f"{kind}.delta", **place, delta="", **rest)
        if block.kind == "call":
            yield self._frame(f"{kind}.done", **place, name=block.name, arguments=block.text)
        else:
            more = {"logprobs": self._logprobs} if block.kind == "text" else {}
            yield self._frame(f"{kind}.done", **place, text=block.text, **more)
            part = self._part(block, block.text, self._logprobs)
            yield self._frame("response.content_part.done", **place, part=part)
        item = self._item(block, self._ended(block))
        yield self._frame("response.output_item.done", output_index=block.index, item=item)

    def _part(self, block: Block, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        if block.kind == "text":
            return self._text_part(text, logprobs)
        return {"type": "reasoning_text", "text": text}

    def _new_logprobs(self, block: Block) -> dict[str, Any]:
        """Logprobs that no delta has shown; those of thoughts come with the first words."""
        if block.kind != "text":
            return {}
        news = self._logprobs[self._shown_logprobs :]
        self._shown_logprobs = len(self._logprobs)
        return {"logprobs": news}

    def _frame(self, kind: str, **fields: Any) -> bytes:
        frame = typed_frame({"type": kind, "sequence_number": self._numbers, **fields})
        self._numbers += 1
        return frame
