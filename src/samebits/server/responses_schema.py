"""What /v1/responses takes, as data, besides the fields that every OpenAI route has."""

from __future__ import annotations

from typing import Any

import msgspec

from samebits.server.openai_schema import INERT_FIELDS

INERT_RESPONSES_FIELDS = {
    **INERT_FIELDS,
    "max_tool_calls": "it counts calls of tools that the server runs, and there are none",
}

REFUSED_RESPONSES_FIELDS = {
    "background": "responses that run detached",
    "context_management": "compacted conversations",
    "conversation": "stored conversations (send the whole conversation as input)",
    "max_tokens": "limits under this name (use max_output_tokens)",
    "max_completion_tokens": "limits under this name (use max_output_tokens)",
    "messages": "conversations under this name (use input)",
    "moderation": "moderation",
    "previous_response_id": "stored responses (nothing is stored here: send the whole conversation as input)",
    "prompt": "stored prompts",
    "response_format": "formats under this name (use text.format)",
}


class TextFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`text`."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`reasoning`."""

    effort: str | None = None
    summary: str | None = None
    """accepted: thoughts are shown as they are, never summed up"""
    generate_summary: str | None = None
    """accepted, as above"""


class ResponsesFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What /v1/responses takes besides."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    reasoning: ReasoningFields | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    metadata: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    date: str | None = None
    separate_reasoning: bool | None = None
