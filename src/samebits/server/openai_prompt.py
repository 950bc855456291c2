"""From a chat to the prompt that the checkpoint's template makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from samebits.errors import RequestError
from samebits.server.front import Front
from samebits.server.openai_messages import template_messages, template_tools
from samebits.server.openai_schema import ChatFields, TokenizeFields
from samebits.text.answer import AnswerParser
from samebits.text.chat import ChatTemplate
from samebits.text.reasoning import ReasoningSplitter, opens_thoughts, thinks
from samebits.text.tool_calls import HermesParser, calls_tools


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered chat, and how its answer is to be read."""

    text: str
    splits_reasoning: bool
    with_tools: bool
    most_calls: int | None

    def parser(self) -> AnswerParser:
        """A fresh reader of one answer."""
        return AnswerParser(
            ReasoningSplitter(opens_thoughts(self.text)) if self.splits_reasoning else None,
            HermesParser(self.most_calls) if self.with_tools else None,
        )


def chat_prompt(front: Front, body: ChatFields) -> ChatPrompt:
    """The prompt of a chat. Raises `RequestError` naming the field."""
    template = _template(front)
    tools = template_tools(body.tools)
    if not _tools_wanted(body.tool_choice, bool(tools)):
        tools = []
    if tools and not calls_tools(template.source):
        raise RequestError(
            "tools: this checkpoint's chat template asks for no tool calls in a format that is known here",
            "tools",
            "unsupported_value",
        )
    return ChatPrompt(
        render(template, body, tools),
        splits_reasoning=body.separate_reasoning is not False and thinks(template.source),
        with_tools=bool(tools),
        most_calls=1 if body.parallel_tool_calls is False else None,
    )


def tokenize_prompt(front: Front, body: TokenizeFields) -> str:
    """The prompt of a chat that is only to be tokenized."""
    return render(_template(front), body, template_tools(body.tools))


def render(template: ChatTemplate, body: ChatFields | TokenizeFields, tools: Sequence[dict[str, Any]]) -> str:
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    return template.render(
        template_messages(body.messages),
        add_generation_prompt=body.add_generation_prompt is not False,
        tools=tools,
        documents=body.documents,
        date=_date(body.date),
        variables=variables,
    )


def _template(front: Front) -> ChatTemplate:
    if front.chat_template is None:
        raise RequestError("this checkpoint has no chat template: use /v1/completions", "messages")
    return front.chat_template


def _tools_wanted(choice: str | dict[str, Any] | None, given: bool) -> bool:
    """Whether the model may call tools. Raises `RequestError` where it would have to."""
    if choice is None or choice == "auto":
        return given
    if choice == "none":
        return False
    if choice == "required" or isinstance(choice, dict):
        raise RequestError(
            "tool_choice: a call that must be made needs structured output, which is not offered yet; "
            "use 'auto' or 'none'",
            "tool_choice",
            "unsupported_value",
        )
    raise RequestError(f"tool_choice must be 'auto' or 'none', got {choice!r}", "tool_choice")


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError(f"date must be like 2026-01-31, got {text[:40]!r}", "date") from error
