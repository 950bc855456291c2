"""What the routes answer, as data: read by the OpenAPI document alone. Fields that depend on the request may be
missing; an answer may have more fields than are named here."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ErrorDetail(msgspec.Struct):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class AnthropicErrorAnswer(msgspec.Struct):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str


class UsageAnswer(msgspec.Struct):
    """Tokens of a completion or a chat."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class ReplayAnswer(msgspec.Struct):
    """`samebits`: what replays an answer on /generate."""

    seed: int | str
    sample_index: int
    sampling_params: dict[str, Any]
    warnings: list[str]


class CompletionChoiceAnswer(msgspec.Struct):
    """A sample of /v1/completions."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None
    stop_reason: int | str | None
    samebits: ReplayAnswer


class CompletionAnswer(msgspec.Struct):
    """An answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoiceAnswer]
    usage: UsageAnswer


class FunctionAnswer(msgspec.Struct):
    """The function of a tool call; `arguments` are the model's own characters."""

    name: str
    arguments: str


class ToolCallAnswer(msgspec.Struct):
    """A tool call of a chat."""

    id: str
    type: Literal["function"]
    function: FunctionAnswer


class ChatMessageAnswer(msgspec.Struct):
    """The message of a chat's choice."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallAnswer] | msgspec.UnsetType = msgspec.UNSET


class ChatChoiceAnswer(msgspec.Struct):
    """A sample of /v1/chat/completions."""

    index: int
    message: ChatMessageAnswer
    logprobs: dict[str, Any] | None
    finish_reason: str | None
    stop_reason: int | str | None
    samebits: ReplayAnswer


class ChatAnswer(msgspec.Struct):
    """An answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoiceAnswer]
    usage: UsageAnswer


class ResponseUsageAnswer(msgspec.Struct):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseAnswer(msgspec.Struct):
    """An answer of /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "cancelled"]
    model: str
    system_fingerprint: str
    output: list[dict[str, Any]]
    usage: ResponseUsageAnswer
    samebits: ReplayAnswer
    error: None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    metadata: dict[str, Any]
    tools: list[dict[str, Any]]
    store: Literal[False]


class MessageUsageAnswer(msgspec.Struct):
    """Tokens of a message."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int]


class MessageAnswer(msgspec.Struct):
    """An answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    system_fingerprint: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    usage: MessageUsageAnswer
    samebits: ReplayAnswer


class TokenCountAnswer(msgspec.Struct):
    """An answer of /v1/messages/count_tokens."""

    input_tokens: int


class ModelAnswer(msgspec.Struct):
    """The served model."""

    id: str
    object: Literal["model"]
    type: Literal["model"]
    display_name: str
    created: int
    created_at: str
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    fingerprint: str


class ModelsAnswer(msgspec.Struct):
    """An answer of /v1/models."""

    object: Literal["list"]
    data: list[ModelAnswer]


class TokensAnswer(msgspec.Struct):
    """An answer of /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int


class TextAnswer(msgspec.Struct):
    """An answer of /detokenize."""

    prompt: str
    text: str


class GenerateAnswer(msgspec.Struct):
    """One sample of /generate."""

    text: str
    output_ids: list[int]
    meta_info: dict[str, Any]
