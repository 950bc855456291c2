"""Messages and tools as clients send them, made into what chat templates read. Refused: what is no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samebits.errors import RequestError
from samebits.server.fields import check_name, decode_json

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""templates know the developer as the system"""
MESSAGE_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"}
INERT_MESSAGE_FIELDS = {"annotations", "cache_control", "id", "provider_specific_fields"}
REFUSED_MESSAGE_FIELDS = {"audio", "function_call", "refusal", "reasoning"}
TEXT_PARTS = {"text", "input_text", "output_text"}


def template_messages(messages: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The messages of a chat. Raises `RequestError` naming the message."""
    if not messages:
        raise RequestError("messages is empty: a chat needs at least one message", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: dict[str, Any], path: str) -> dict[str, Any]:
    for name, value in message.items():
        if name in REFUSED_MESSAGE_FIELDS and value:
            raise RequestError(f"{path}.{name} is not offered", f"{path}.{name}", "unsupported_parameter")
        check_name(name, MESSAGE_FIELDS | INERT_MESSAGE_FIELDS | REFUSED_MESSAGE_FIELDS, path)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(
            f"{path}.role must be one of {', '.join(ROLES)}, got {str(role)[:60]!r}", f"{path}.role"
        )
    calls = _calls(message.get("tool_calls"), f"{path}.tool_calls")
    if calls and role != "assistant":
        raise RequestError(f"{path}.tool_calls belong to the assistant", f"{path}.tool_calls")
    result: dict[str, Any] = {"role": ROLES[role]}
    result["content"] = text_content(message.get("content"), f"{path}.content", optional=role == "assistant")
    if calls:
        result["tool_calls"] = calls
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = message.get(name)
        if value is not None:
            result[name] = text_field(value, f"{path}.{name}")
    return result


def text_content(content: object, path: str, optional: bool) -> str:
    """The text of a message; its parts are lines. Raises `RequestError` naming the part below `path`."""
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{path} must be a string or a list of text parts", path, "invalid_type")
    return "\n".join(_part(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part(part: object, path: str) -> str:
    if not isinstance(part, dict):
        raise RequestError(f"{path} must be an object with a type", path, "invalid_type")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise RequestError(
            f"{path}: parts of type {str(kind)[:60]!r} are not offered: this server reads text alone",
            path,
            "unsupported_value",
        )
    return text_field(part.get("text"), f"{path}.text")


def _calls(calls: object, path: str) -> list[dict[str, Any]]:
    """Tool calls of an earlier turn; templates want their arguments as objects."""
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise RequestError(f"{path} must be a list", path, "invalid_type")
    return [_call(call, f"{path}[{index}]") for index, call in enumerate(calls)]


def _call(call: object, path: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise RequestError(f"{path} must hold a function", path, "invalid_type")
    arguments = call_arguments(function.get("arguments"), f"{path}.function.arguments")
    name = text_field(function.get("name"), f"{path}.function.name")
    result: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if call.get("id") is not None:
        result["id"] = text_field(call["id"], f"{path}.id")
    return result


def call_arguments(arguments: object, path: str) -> dict[str, Any]:
    """The arguments of a call, as an object. Raises `RequestError` naming `path`."""
    if isinstance(arguments, str):
        try:
            arguments = decode_json(arguments.encode()) if arguments.strip() else {}
        except ValueError as error:
            raise RequestError(f"{path} is not valid JSON: {error}", path) from error
    if not isinstance(arguments, dict):
        raise RequestError(f"{path} must be a JSON object, in a string", path, "invalid_type")
    return arguments


def template_tools(tools: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The tools of a chat. Raises `RequestError` naming the tool."""
    for index, tool in enumerate(tools or ()):
        path = f"tools[{index}]"
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise RequestError(f"{path} must be of type 'function' and hold one", path, "unsupported_value")
        text_field(function.get("name"), f"{path}.function.name")
    return list(tools or ())


def text_field(value: object, path: str) -> str:
    """`value`, which must be a string. Raises `RequestError` naming `path`."""
    if not isinstance(value, str):
        raise RequestError(f"{path} must be a string", path, "invalid_type")
    return value
