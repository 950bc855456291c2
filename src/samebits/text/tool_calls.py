"""Tool calls in the Hermes format, as they come: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

What is found depends on the text alone, never on the pieces that it comes in: a whole text pushed at once and
the same text pushed character by character give the same words, calls and arguments.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

from samebits.text.tags import partial_length

OPEN, CLOSE = "<tool_call>", "</tool_call>"
HEADER = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""what a call begins with when its arguments can be shown before it ends"""


@dataclass(frozen=True)
class CallDelta:
    """News of one call. `name` is set in its first."""

    number: int
    arguments: str
    name: str | None = None


@dataclass(frozen=True)
class ToolDelta:
    """News of a text: words for the reader and calls, in the text's order."""

    parts: tuple[str | CallDelta, ...] = ()


class ToolParser(Protocol):
    """Tells words from calls in a growing text."""

    @property
    def calls(self) -> int:
        """Calls so far."""

    def push(self, text: str) -> ToolDelta:
        """What is certain once `text` has come."""

    def finish(self) -> ToolDelta:
        """The rest, when no more comes."""


class HermesParser:
    """Tells words from calls in a growing text.

    The arguments of a call are the model's own characters, which may be no valid JSON where the model errs or is
    cut short. A block that names no function is words. Blank space before a call and after the last is dropped.
    """

    def __init__(self, most_calls: int | None = None) -> None:
        """Calls after the first `most_calls` are dropped."""
        self._most = most_calls
        self._held = ""
        self._body: str | None = None
        """what has come of a call whose arguments cannot be shown yet"""
        self._value: JsonObject | None = None
        """the arguments that are being shown"""
        self._calls = 0
        self._parts: list[str | CallDelta] = []

    @property
    def calls(self) -> int:
        """Calls so far."""
        return self._calls if self._most is None else min(self._calls, self._most)

    def push(self, text: str) -> ToolDelta:
        """What is certain once `text` has come."""
        self._held += text
        while self._advance():
            pass
        return self._news()

    def finish(self) -> ToolDelta:
        """The rest, when no more comes."""
        if self._body is not None and not self._whole_call(self._body + self._held):
            self._parts.append(OPEN + self._body + self._held)
        elif self._body is None and self._value is None and (self._held.strip() or not self._calls):
            self._parts.append(self._held)
        if self._value is not None:
            self._calls += 1
        self._held, self._body, self._value = "", None, None
        return self._news()

    def _news(self) -> ToolDelta:
        parts, self._parts = self._parts, []
        return ToolDelta(tuple(part for part in parts if self._is_shown(part)))

    def _is_shown(self, part: str | CallDelta) -> bool:
        if isinstance(part, str):
            return bool(part)
        return self._most is None or part.number < self._most

    def _advance(self) -> bool:
        """Read on from what is held; whether there may be more to read."""
        if self._value is not None:
            return self._advance_value(self._value)
        if self._body is not None:
            return self._advance_body()
        return self._advance_text()

    def _advance_text(self) -> bool:
        start = self._held.find(OPEN)
        if start >= 0:
            self._parts.append(self._held[:start].rstrip())
            self._held, self._body = self._held[start + len(OPEN) :], ""
            return True
        border = len(self._held) - partial_length(self._held, OPEN)
        border = len(self._held[:border].rstrip())
        self._parts.append(self._held[:border])
        self._held = self._held[border:]
        return False

    def _advance_body(self) -> bool:
        assert self._body is not None
        body = self._body + self._held
        self._held = ""
        end = body.find(CLOSE)
        header = HEADER.match(body)
        if header and (end < 0 or header.end() < end + len(CLOSE) - 1):
            name = load_json(header.group(1))
            if isinstance(name, str):
                self._parts.append(CallDelta(self._calls, "", name))
                self._held, self._body, self._value = body[header.end() :], None, JsonObject()
                return True
        if end < 0:
            self._body = body
            return False
        if not self._whole_call(body[:end]):
            self._parts.append(OPEN + body[:end] + CLOSE)
        self._held, self._body = body[end + len(CLOSE) :], None
        return True

    def _advance_value(self, value: JsonObject) -> bool:
        if not value.ended:
            shown, self._held = value.push(self._held)
            if shown:
                self._parts.append(CallDelta(self._calls, shown))
        if not value.ended:
            return False
        end = self._held.find(CLOSE)
        if end < 0:
            self._held = self._held[len(self._held) - partial_length(self._held, CLOSE) :]
            return False
        self._held, self._value = self._held[end + len(CLOSE) :], None
        self._calls += 1
        return True

    def _whole_call(self, body: str) -> bool:
        """Take a finished body as a call; whether it is one."""
        call = load_json(body)
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return False
        self._parts.append(CallDelta(self._calls, arguments_text(call), call["name"]))
        self._calls += 1
        return True


def arguments_text(call: dict[str, Any]) -> str:
    """The arguments of a call that has come as a whole, as text."""
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        return arguments
    return json.dumps({} if arguments is None else arguments, ensure_ascii=False)


class JsonObject:
    """Finds the end of a JSON object."""

    def __init__(self, depth: int = 0) -> None:
        """`depth`: objects that are open already."""
        self._depth = depth
        self._in_string = False
        self._escaped = False
        self.ended = False

    def push(self, text: str) -> tuple[str, str]:
        """(what belongs to the object, what follows it). A `<` outside a string is no JSON, and ends it."""
        for place, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
                continue
            if character == "<":
                self.ended = True
                return text[:place], text[place:]
            if character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return text[: place + 1], text[place + 1 :]
        return text, ""


def load_json(text: str) -> object:
    """A JSON value, or None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
