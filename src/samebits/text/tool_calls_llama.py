"""Tool calls in Llama 3's JSON format, as they come: `{"name": ..., "parameters": {...}}`.

An answer that begins with such an object, perhaps after `<|python_tag|>`, is a call; more may follow after a
semicolon or blank space. What is found depends on the text alone, never on the pieces that it comes in.
"""

from __future__ import annotations

import re
from enum import Enum

from samebits.text.tags import partial_length
from samebits.text.tool_calls import CallDelta, JsonObject, ToolDelta, arguments_text, load_json

TAG = "<|python_tag|>"
ARGUMENTS = {"parameters", "arguments"}
SEPARATORS = "; \t\r\n"
HEADER = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""what a call begins with when its arguments can be shown before it ends"""


class _Place(Enum):
    BEFORE = 1
    """a call, or words"""
    OBJECT = 2
    """an object that may turn out to be a call"""
    ARGUMENTS = 3
    REST = 4
    """of a call, behind its arguments"""
    WORDS = 5


class LlamaParser:
    """Tells words from calls in a growing text.

    The arguments of a call are the model's own characters, which may be no valid JSON where the model errs or is
    cut short. An object that names no function with parameters is words, and so is all that follows it. Blank space
    and semicolons around calls are dropped.
    """

    def __init__(self, most_calls: int | None = None) -> None:
        """Calls after the first `most_calls` are dropped."""
        self._most = most_calls
        self._place = _Place.BEFORE
        self._held = ""
        self._object = ""
        """what has come of an object that may turn out to be a call"""
        self._value = JsonObject()
        """finds the end of that object, of the arguments, or of the call"""
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
        if self._place in (_Place.ARGUMENTS, _Place.REST):
            self._calls += 1
        elif self._place is _Place.OBJECT:
            self._parts.append(self._object + self._held)
        elif self._place is not _Place.BEFORE or self._held.strip(SEPARATORS) or not self._calls:
            self._parts.append(self._held)
        self._held, self._place = "", _Place.WORDS
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
        match self._place:
            case _Place.BEFORE:
                return self._advance_before()
            case _Place.OBJECT:
                return self._advance_object()
            case _Place.ARGUMENTS:
                return self._advance_arguments()
            case _Place.REST:
                self._held = self._held[self._value.push(self._held) :]
                return self._end_call() if self._value.ended else False
            case _:
                return self._advance_words()

    def _advance_before(self) -> bool:
        rest = self._held.lstrip(SEPARATORS if self._calls else None)
        if rest.startswith(TAG):
            self._held = rest[len(TAG) :]
            return True
        if not rest or TAG.startswith(rest):
            return False
        self._place = _Place.OBJECT if rest[0] == "{" else _Place.WORDS
        if self._place is _Place.OBJECT or self._calls:
            self._held = rest
        self._object, self._value = "", JsonObject()
        return True

    def _advance_object(self) -> bool:
        end = self._value.push(self._held)
        self._object += self._held[:end]
        self._held = self._held[end:]
        header = HEADER.match(self._object)
        name = load_json(header.group(1)) if header else None
        if header and isinstance(name, str):
            self._parts.append(CallDelta(self._calls, "", name))
            self._held = self._object[header.end() :] + self._held
            self._place, self._value = _Place.ARGUMENTS, JsonObject()
            return True
        if not self._value.ended:
            return False
        call = load_json(self._object)
        if isinstance(call, dict) and isinstance(call.get("name"), str) and ARGUMENTS & set(call):
            self._parts.append(CallDelta(self._calls, arguments_text(call), call["name"]))
            return self._end_call()
        self._held, self._place = self._object + self._held, _Place.WORDS
        return True

    def _advance_arguments(self) -> bool:
        end = self._value.push(self._held)
        shown, self._held = self._held[:end], self._held[end:]
        if shown:
            self._parts.append(CallDelta(self._calls, shown))
        if self._value.ended:
            self._place, self._value = _Place.REST, JsonObject(depth=1)
        return self._value.ended or self._place is _Place.REST

    def _end_call(self) -> bool:
        self._calls += 1
        self._place = _Place.BEFORE
        return bool(self._held)

    def _advance_words(self) -> bool:
        start = self._held.find(TAG)
        if start >= 0:
            self._parts.append(self._held[:start])
            self._held, self._place = self._held[start + len(TAG) :], _Place.BEFORE
            return True
        border = len(self._held) - partial_length(self._held, TAG)
        self._parts.append(self._held[:border])
        self._held = self._held[border:]
        return False
