"""From a /v1/messages body to the chat that it means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from samebits.errors import RequestError
from samebits.server.anthropic_schema import MessagesFields, ThinkingFields, ToolChoiceFields
from samebits.server.fields import check_name
from samebits.server.openai_messages import text_content, text_field
from samebits.server.openai_schema import ChatFields

BLOCK_FIELDS = {
    "text": {"text", "citations"},
    "thinking": {"thinking", "signature"},
    "tool_use": {"id", "name", "input", "caller"},
    "tool_result": {"tool_use_id", "content", "is_error"},
}
COMMON_BLOCK_FIELDS = {"type", "cache_control"}
BLOCKS_OF = {
    "system": {"text"},
    "user": {"text", "tool_result"},
    "assistant": {"text", "thinking", "tool_use"},
}
INERT_TOOL_FIELDS = {
    *("allowed_callers", "cache_control", "defer_loading", "eager_input_streaming", "input_examples"),
}
CHOICES = {"auto": "auto", "none": "none", "any": "required"}

Block = tuple[dict[str, Any], str]
"""a block, and where it stands in the body"""


def to_chat(body: MessagesFields) -> ChatFields:
    """The chat of a body. Raises `RequestError` naming the field."""
    if not _edits_nothing(body.context_management):
        message = "context_management: edits of a conversation by the server are not offered"
        raise RequestError(message, "context_management", "unsupported_parameter")
    choice, parallel = _tool_choice(body.tool_choice)
    output = body.output_config
    return ChatFields(
        messages=_messages(body),
        tools=_tools(body.tools or ()),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=_response_format(None if output is None else output.format),
        reasoning_effort=None if output is None else output.effort,
        chat_template_kwargs=_variables(body.thinking) | (body.chat_template_kwargs or {}),
        date=body.date,
    )


def _messages(body: MessagesFields) -> list[dict[str, Any]]:
    messages = _system(body.system)
    if not body.messages:
        raise RequestError("messages is empty: a conversation needs at least one message", "messages")
    turns: list[tuple[str, list[Block]]] = []
    for index, message in enumerate(body.messages):
        role, blocks = _turn(message, f"messages[{index}]")
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if turns[-1][0] == "assistant":
        raise RequestError(
            "messages: the last message is the assistant's; answers that are begun for the model are not offered",
            "messages",
            "unsupported_value",
        )
    for role, blocks in turns:
        messages += [_assistant(blocks)] if role == "assistant" else _others(role, blocks)
    return messages


def _system(system: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    blocks = [_block(block, f"system[{index}]", "system") for index, block in enumerate(system)]
    return _others("system", blocks)


def _turn(message: dict[str, Any], path: str) -> tuple[str, list[Block]]:
    for name in message:
        check_name(name, ("role", "content"), path)
    role = message.get("role")
    if not isinstance(role, str) or role not in BLOCKS_OF:
        known = ", ".join(BLOCKS_OF)
        raise RequestError(f"{path}.role must be one of {known}, got {str(role)[:60]!r}", f"{path}.role")
    content = message.get("content")
    where = f"{path}.content"
    if isinstance(content, str):
        return role, [({"type": "text", "text": content}, where)]
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list of blocks", where, "invalid_type")
    return role, [_block(block, f"{where}[{index}]", role) for index, block in enumerate(content)]


def _block(block: object, path: str, role: str) -> Block:
    """A block that `role` may say, with the fields that it must have."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(block, dict) or not isinstance(kind, str) or kind not in BLOCKS_OF[role]:
        known = ", ".join(sorted(BLOCKS_OF[role]))
        raise RequestError(
            f"{path}: blocks of type {str(kind)[:60]!r} are not offered here: the {role} says {known}",
            path,
            "unsupported_value",
        )
    for name in block:
        if name not in COMMON_BLOCK_FIELDS | BLOCK_FIELDS[kind]:
            raise RequestError(f"unknown field {path}.{name}", f"{path}.{name}", "unknown_parameter")
    needed = {"text": ["text"], "thinking": ["thinking"], "tool_use": ["id", "name"]}
    for name in needed.get(kind, ["tool_use_id"]):
        text_field(block.get(name), f"{path}.{name}")
    if kind == "tool_use" and not isinstance(block.get("input"), dict):
        raise RequestError(f"{path}.input must be an object", f"{path}.input", "invalid_type")
    return block, path


def _assistant(blocks: Sequence[Block]) -> dict[str, Any]:
    """A turn of the assistant's: thoughts, words and calls."""
    message: dict[str, Any] = {"role": "assistant"}
    thoughts = [block["thinking"] for block, _ in blocks if block["type"] == "thinking"]
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {"name": block["name"], "arguments": block["input"]},
        }
        for block, _ in blocks
        if block["type"] == "tool_use"
    ]
    message["content"] = _words(block for block, _ in blocks)
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _words(blocks: Iterable[dict[str, Any]]) -> str:
    """The texts of a turn: lines, but what follows a call goes on with what came before, as in the answer of a chat."""
    pieces: list[str] = []
    between = ""
    for block in blocks:
        if block["type"] == "tool_use":
            between = ""
        elif block["type"] == "text":
            pieces += (between, block["text"])
            between = "\n"
    return "".join(pieces)


def _others(role: str, blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Messages of a turn that is not the assistant's: results of tools, and texts, in their order."""
    messages: list[dict[str, Any]] = []
    texts: list[str] = []
    """of the message that is open"""
    for block, path in blocks:
        if block["type"] == "text":
            texts.append(block["text"])
            continue
        messages += _joined(role, texts)
        texts = []
        content = block.get("content")
        text = "" if content is None else text_content(content, f"{path}.content", optional=False)
        messages.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": text})
    return messages + _joined(role, texts)


def _joined(role: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The message that these texts are, if they are one. Joined once: a body may hold many."""
    return [{"role": role, "content": "\n".join(texts)}] if texts else []


def _tools(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The tools, in the shape of a chat's."""
    found = []
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if tool.get("type") not in (None, "custom"):
            raise RequestError(
                f"{path}: tools of type {str(tool['type'])[:60]!r} are not offered: "
                "a tool has a name and an input_schema",
                path,
                "unsupported_value",
            )
        for name in tool:
            if name not in INERT_TOOL_FIELDS | {"type", "name", "description", "input_schema", "strict"}:
                raise RequestError(f"unknown field {path}.{name}", f"{path}.{name}", "unknown_parameter")
        text_field(tool.get("name"), f"{path}.name")
        if not isinstance(tool.get("input_schema"), dict):
            raise RequestError(
                f"{path}.input_schema must be an object", f"{path}.input_schema", "invalid_type"
            )
        function: dict[str, Any] = {"name": tool["name"]}
        if tool.get("description") is not None:
            function["description"] = tool["description"]
        function["parameters"] = tool["input_schema"]
        if tool.get("strict"):
            function["strict"] = True
        found.append({"type": "function", "function": function})
    return found or None


def _tool_choice(choice: ToolChoiceFields | None) -> tuple[str | dict[str, Any] | None, bool | None]:
    """(`tool_choice`, `parallel_tool_calls`) of the chat."""
    if choice is None:
        return None, None
    parallel = False if choice.disable_parallel_tool_use else None
    if choice.type == "tool":
        name = text_field(choice.name, "tool_choice.name")
        return {"type": "function", "function": {"name": name}}, parallel
    if choice.type not in CHOICES:
        raise RequestError("tool_choice.type must be auto, any, tool or none", "tool_choice.type")
    return CHOICES[choice.type], parallel


def _variables(thinking: ThinkingFields | None) -> dict[str, Any]:
    """What the chat template is told about thinking."""
    if thinking is None:
        return {}
    if thinking.type not in ("enabled", "adaptive", "disabled"):
        raise RequestError("thinking.type must be enabled, adaptive or disabled", "thinking.type")
    if thinking.display not in (None, "summarized"):
        message = "thinking.display: thoughts are shown as they are, never left out"
        raise RequestError(message, "thinking.display", "unsupported_value")
    return {"enable_thinking": thinking.type != "disabled"}


def _response_format(chosen: dict[str, Any] | None) -> dict[str, Any] | None:
    """`output_config.format` in the words of a chat's `response_format`: what that offers is offered here."""
    if chosen is None:
        return None
    if chosen.get("type") != "json_schema":
        message = "output_config.format must be of type 'json_schema'"
        raise RequestError(message, "output_config.format", "unsupported_value")
    rest = {name: value for name, value in chosen.items() if name != "type"}
    return {"type": "json_schema", "json_schema": {"schema": None, **rest}}


def _edits_nothing(management: dict[str, Any] | None) -> bool:
    """Whether every edit keeps all that there is, as clients ask for whose server might drop thoughts."""
    edits = (management or {}).get("edits") or []
    if not isinstance(edits, list) or set(management or {}) - {"edits"}:
        return False
    return all(isinstance(edit, dict) and edit.get("keep") == "all" for edit in edits)
