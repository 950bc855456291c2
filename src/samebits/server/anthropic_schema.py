"""What /v1/messages takes, as data, besides the fields that every route has."""

from __future__ import annotations

from typing import Any

import msgspec

INERT_MESSAGES_FIELDS = {
    "cache_control": "the prefix cache cannot change a result",
    "diagnostics": "they tell of a cache's misses",
    "inference_geo": "one place serves every request",
    "metadata": "a label",
    "service_tier": "there is one",
    "speed": "there is one",
    "user_profile_id": "a label",
    "workspace_id": "a label",
}

REFUSED_MESSAGES_FIELDS = {
    "container": "containers",
    "mcp_servers": "tools that the server runs",
}


class ToolChoiceFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tool_choice`."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`thinking`."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None


class OutputFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`output_config`."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class MessagesFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What /v1/messages takes besides."""

    messages: list[dict[str, Any]] | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoiceFields | None = None
    thinking: ThinkingFields | None = None
    output_config: OutputFields | None = None
    context_management: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    date: str | None = None
