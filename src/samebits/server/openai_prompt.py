"""From a chat to the prompt that the checkpoint's template makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from samebits.errors import RequestError
from samebits.grammar.language import Grammar
from samebits.server.front import Front
from samebits.server.openai_messages import template_messages, template_tools
from samebits.server.openai_schema import ChatFields, CommonFields, TokenizeFields
from samebits.server.openai_structured import output_part
from samebits.server.openai_tools import tool_wish
from samebits.text.answer import AnswerParser
from samebits.text.chat import ChatTemplate
from samebits.text.output_grammar import Thoughts, output_grammar
from samebits.text.reasoning import CLOSE as THOUGHTS_END
from samebits.text.reasoning import ReasoningSplitter, opens_thoughts, thinks
from samebits.text.tool_formats import ToolFormat, tool_format


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered chat, and how its answer is to be made and read."""

    text: str
    splits_reasoning: bool
    tool_format: ToolFormat | None
    """how the model calls tools; None: it cannot"""
    most_calls: int | None
    grammar: Grammar | None = None
    """what the answer must match"""

    def parser(self) -> AnswerParser:
        """A fresh reader of one answer."""
        return AnswerParser(
            ReasoningSplitter(opens_thoughts(self.text)) if self.splits_reasoning else None,
            self.tool_format.parser(self.most_calls) if self.tool_format is not None else None,
        )


def chat_prompt(
    front: Front, body: ChatFields, common: CommonFields | None = None, names: Mapping[str, str] | None = None
) -> ChatPrompt:
    """The prompt of a chat. `common` may hold more of what its answer must look like; `names` are the route's words.
    Raises `RequestError` naming the field."""
    names = names or {}
    template = _template(front)
    wish = tool_wish(body)
    form = _tool_format(front, template) if wish.shown else None
    text = render(template, body, wish.shown)
    splits_reasoning = body.separate_reasoning is not False and thinks(template.source)
    answer = output_part(body.response_format, common, names)
    calls = None
    if form is not None and (wish.forced or wish.strict or answer is not None):
        calls = wish.rules(form, names)
        if answer is not None and not wish.forced and not form.mixes:
            message = (
                f"{answer.field}: with tools of the format {form.name!r}, an answer has no form of its own"
            )
            raise RequestError(message, answer.field, "unsupported_value")
    tokenizer = front.generator.tokenizer
    thoughts = _thoughts(text) if splits_reasoning else Thoughts.NONE
    return ChatPrompt(
        text,
        splits_reasoning,
        form,
        wish.most_calls,
        output_grammar(tokenizer.added_id if tokenizer else lambda text: None, thoughts, answer, calls),
    )


def _tool_format(front: Front, template: ChatTemplate) -> ToolFormat:
    form = tool_format(front.config.tool_call_parser, template.source)
    if form is None:
        raise RequestError(
            "tools: this checkpoint's chat template asks for no tool calls in a format that is known here; "
            "name one with --tool-call-parser",
            "tools",
            "unsupported_value",
        )
    return form


def _thoughts(prompt: str) -> Thoughts:
    """Whether the answer to a prompt begins with thoughts, for a model that thinks."""
    if opens_thoughts(prompt):
        return Thoughts.ARE_OPEN
    return Thoughts.NONE if prompt.rstrip().endswith(THOUGHTS_END) else Thoughts.MAY_COME


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


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError(f"date must be like 2026-01-31, got {text[:40]!r}", "date") from error
