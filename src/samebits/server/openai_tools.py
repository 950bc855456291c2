"""The tools of a chat: which the model may call, which it must, and what their arguments look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samebits.errors import RequestError
from samebits.grammar.language import Part, schema_part
from samebits.server.openai_messages import template_tools
from samebits.server.openai_schema import ChatFields
from samebits.text.output_grammar import CallRules
from samebits.text.tool_formats import ToolFormat


@dataclass(frozen=True)
class ToolWish:
    """What a request says about tools."""

    shown: Sequence[dict[str, Any]] = ()
    """what the chat template sees; empty: the model knows of no tools"""
    callable_names: Sequence[str] = ()
    forced: bool = False
    """whether the answer must be calls"""
    most_calls: int | None = None
    strict: bool = False
    """whether a function asks that its arguments be valid"""

    def rules(self, form: ToolFormat, names: Mapping[str, str]) -> CallRules:
        """The calls as a grammar takes them. Raises `RequestError` naming the function whose arguments cannot be
        enforced, in the route's words (`names`)."""
        place = names.get("tool_parameters", "tools[{}].function.parameters")
        functions: dict[str, Part] = {}
        for index, tool in enumerate(self.shown):
            function = tool["function"]
            if function["name"] in self.callable_names:
                field = place.format(index)
                functions[function["name"]] = schema_part(
                    _arguments(function.get("parameters"), field), field
                )
        return CallRules(form, functions, self.forced, single=self.most_calls == 1)


def tool_wish(body: ChatFields) -> ToolWish:
    """What a chat says about tools. Raises `RequestError` naming the field."""
    tools = template_tools(body.tools)
    choice = body.tool_choice
    names = [tool["function"]["name"] for tool in tools]
    most = 1 if body.parallel_tool_calls is False else None
    strict = any(tool["function"].get("strict") for tool in tools)
    if choice == "none" or (choice in (None, "auto") and not tools):
        return ToolWish()
    if choice in (None, "auto"):
        return ToolWish(tools, names, most_calls=most, strict=strict)
    if isinstance(choice, dict):
        return ToolWish(tools, [_chosen(choice, names)], forced=True, most_calls=1)
    if choice != "required":
        message = f"tool_choice must be 'auto', 'none', 'required' or a function, got {choice!r}"
        raise RequestError(message, "tool_choice")
    if not tools:
        raise RequestError("tool_choice 'required' needs tools", "tool_choice")
    return ToolWish(tools, names, forced=True, most_calls=most)


def _chosen(choice: Mapping[str, Any], names: Sequence[str]) -> str:
    """The name in `{"type": "function", "function": {"name": ...}}`."""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        message = 'tool_choice must be like {"type": "function", "function": {"name": ...}}'
        raise RequestError(message, "tool_choice", "unsupported_value")
    if name not in names:
        raise RequestError(f"tool_choice names {name!r}, which is not among the tools", "tool_choice")
    return name


def _arguments(parameters: object, field: str) -> object:
    """The schema of a function's arguments, which are an object; without one there are none."""
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, dict):
        return parameters
    if parameters.get("type", "object") != "object":
        raise RequestError(f"{field} must be a schema of type object", field, "unsupported_value")
    return {"type": "object", **parameters}
