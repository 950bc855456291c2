"""From a /v1/responses body to the chat that it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samebits.errors import RequestError
from samebits.server.fields import check_name
from samebits.server.openai_messages import ROLES, call_arguments, text_content, text_field
from samebits.server.openai_schema import ChatFields
from samebits.server.responses_schema import ResponsesFields

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = {
    LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
}
"""all but the logprobs are of things that cannot occur here; thoughts are in the open"""
ITEM_FIELDS = {
    "message": {"role", "content", "phase"},
    "function_call": {"call_id", "name", "arguments", "caller", "namespace"},
    "function_call_output": {"call_id", "name", "output", "caller", "namespace"},
    "reasoning": {"summary", "content", "encrypted_content"},
}
COMMON_ITEM_FIELDS = {"type", "id", "status"}


def to_chat(body: ResponsesFields) -> ChatFields:
    """The chat of a body. Raises `RequestError` naming the field."""
    _check(body)
    wants_logprobs = LOGPROBS in (body.include or ())
    return ChatFields(
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        logprobs=wants_logprobs,
        top_logprobs=body.top_logprobs if wants_logprobs else None,
        tools=_tools(body.tools or ()),
        tool_choice=_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_response_format(None if body.text is None else body.text.format),
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        chat_template_kwargs=body.chat_template_kwargs,
        date=body.date,
        separate_reasoning=body.separate_reasoning,
    )


def _check(body: ResponsesFields) -> None:
    if body.truncation not in (None, "disabled"):
        raise RequestError(
            "truncation: a conversation is never cut; the only value is 'disabled'",
            "truncation",
            "unsupported_value",
        )
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        message = "text.verbosity: levels of verbosity are not offered"
        raise RequestError(message, "text.verbosity", "unsupported_value")
    for name in body.include or ():
        if name not in INCLUDABLE:
            raise RequestError(f"include holds {name[:60]!r}, which is not known", "include")
    if body.top_logprobs and LOGPROBS not in (body.include or ()):
        raise RequestError(f"top_logprobs needs include: ['{LOGPROBS}']", "top_logprobs")
    if LOGPROBS in (body.include or ()) and body.tools:
        raise RequestError(
            "include: logprobs of an answer that may hold tool calls are not offered here; "
            "/v1/chat/completions has them",
            "include",
            "unsupported_value",
        )


def _messages(body: ResponsesFields) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if body.input is None or body.input == []:
        raise RequestError("input is empty: give a text, or a list of items", "input")
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    turn: dict[str, Any] | None = None
    last = ""
    for index, item in enumerate(body.input):
        path = f"input[{index}]"
        kind = _kind(item, path)
        if kind in ("function_call", "reasoning") or item.get("role") == "assistant":
            if turn is None or _begins_turn(turn, last, kind):
                turn = {"role": "assistant"}
                messages.append(turn)
            _add_to_turn(turn, kind, item, path)
            last = kind
            continue
        turn = None
        if kind == "message":
            messages.append(_message(item, path))
        else:
            output = text_content(item.get("output"), f"{path}.output", optional=False)
            called = text_field(item.get("call_id"), f"{path}.call_id")
            messages.append({"role": "tool", "tool_call_id": called, "content": output})
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = "".join(message["content"])
    return messages


def _kind(item: dict[str, Any], path: str) -> str:
    kind = item.get("type", "message" if "role" in item else None)
    if not isinstance(kind, str) or kind not in ITEM_FIELDS:
        raise RequestError(
            f"{path}.type must be one of {', '.join(ITEM_FIELDS)}, got {str(kind)[:60]!r}",
            f"{path}.type",
            "unsupported_value",
        )
    for name in item:
        check_name(name, COMMON_ITEM_FIELDS | ITEM_FIELDS[kind], path)
    return kind


def _message(item: dict[str, Any], path: str) -> dict[str, Any]:
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES or role == "tool":
        known = "system, developer, user, assistant"
        raise RequestError(f"{path}.role must be one of {known}, got {str(role)[:60]!r}", f"{path}.role")
    return {"role": role, "content": text_content(item.get("content"), f"{path}.content", optional=False)}


def _begins_turn(turn: Mapping[str, Any], last: str, kind: str) -> bool:
    """Whether an item of the assistant's does not belong to its `turn`, whose last item is of kind `last`: thoughts,
    then words and calls. Words behind a call go on with those before it, as in the answer of a chat."""
    if kind == "reasoning":
        return len(turn) > 1
    return kind == "message" and last == "message"


def _add_to_turn(turn: dict[str, Any], kind: str, item: dict[str, Any], path: str) -> None:
    """Its words are a list as long as it grows."""
    if kind == "reasoning":
        turn["reasoning_content"] = _thoughts(item, path)
    elif kind == "message":
        turn.setdefault("content", []).append(_message(item, path)["content"])
    else:
        function = {
            "name": text_field(item.get("name"), f"{path}.name"),
            "arguments": call_arguments(item.get("arguments"), f"{path}.arguments"),
        }
        call = {
            "id": text_field(item.get("call_id"), f"{path}.call_id"),
            "type": "function",
            "function": function,
        }
        turn.setdefault("tool_calls", []).append(call)


def _thoughts(item: dict[str, Any], path: str) -> str:
    content = item.get("content") or []
    if not isinstance(content, list):
        raise RequestError(f"{path}.content must be a list", f"{path}.content", "invalid_type")
    if not content and item.get("encrypted_content"):
        raise RequestError(
            f"{path}.encrypted_content: thoughts of another server cannot be read here",
            f"{path}.encrypted_content",
            "unsupported_value",
        )
    texts = []
    for index, part in enumerate(content):
        where = f"{path}.content[{index}]"
        if not isinstance(part, dict) or part.get("type") != "reasoning_text":
            raise RequestError(f"{where} must be of type 'reasoning_text'", where, "unsupported_value")
        texts.append(text_field(part.get("text"), f"{where}.text"))
    return "\n".join(texts)


def _tools(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The tools, in the shape of a chat's."""
    found = []
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if tool.get("type") != "function":
            raise RequestError(
                f"{path}: tools of type {str(tool.get('type'))[:60]!r} are not offered: "
                "a tool must be of type 'function'",
                path,
                "unsupported_value",
            )
        text_field(tool.get("name"), f"{path}.name")
        kept = ("name", "description", "parameters", "strict")
        function = {name: tool[name] for name in kept if tool.get(name) is not None}
        found.append({"type": "function", "function": function})
    return found or None


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise RequestError(
            "tool_choice must be 'auto', 'none', 'required' or of type 'function'",
            "tool_choice",
            "unsupported_value",
        )
    name = text_field(choice.get("name"), "tool_choice.name")
    return {"type": "function", "function": {"name": name}}


def _response_format(chosen: dict[str, Any] | None) -> dict[str, Any] | None:
    """`text.format` in the words of a chat's `response_format`: what that offers is offered here."""
    if chosen is None or chosen.get("type") != "json_schema":
        return chosen
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in chosen.items() if name != "type"},
    }
