"""Tool calls in Llama 3's JSON format, as they come: `{"name": ..., "parameters": {...}}`.

An answer that begins with such an object, perhaps after `<|python_tag|>`, is a call; more may follow after a
semicolon or blank space. What is found depends on the text alone, never on the pieces that it comes in.
"""

from __future__ import annotations

import re
from enum import Enum

from samebits.text.tags import partial_length
from samebits.text.tool_calls import (
    LAST,
    CallHeader,
    Findings,
    JsonObject,
    Steps,
    ToolDelta,
    arguments_text,
    header_name,
    load_json,
)

TAG = "<|python_tag|>"
ARGUMENTS = {"parameters", "arguments"}
SEPARATORS = "; \t\r\n"
HEADER = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""what a call begins with when its arguments can be shown before it ends"""
HEADER_STEPS: Steps = (
    {"{": 1}, {'"name"': 2, '"type"': 8}, {":": 3}, {}, {",": 5}, {'"arguments"': 6, '"parameters"': 6}, {":": 7},
    {"{": LAST}, {":": 9}, {'"function"': 10}, {",": 11}, {'"name"': 2},
)  # fmt: skip
"""the same, for a text that grows"""


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
    """Tells words from calls in a growing text. Each character is looked at a fixed number of times.

    The arguments of a call are the model's own characters, which may be no valid JSON where the model errs or is
    cut short. An object that names no function with parameters is words, and so is all that follows it up to a
    tag. Blank space and semicolons around calls are dropped.
    """

    def __init__(self, most_calls: int | None = None) -> None:
        """Calls after the first `most_calls` are dropped."""
        self._found = Findings(most_calls)
        self._place = _Place.BEFORE
        self._held = ""
        self._at = 0
        """where in what is held to read on"""
        self._blank: list[str] = []
        """blank space before what comes, which words keep and a call drops"""
        self._object: list[str] = []
        """what has come of an object that may turn out to be a call"""
        self._header = CallHeader(HEADER_STEPS)
        self._value = JsonObject()
        """finds the end of that object, of the arguments, or of the call"""

    @property
    def calls(self) -> int:
        """Calls so far."""
        return self._found.calls

    def push(self, text: str) -> ToolDelta:
        """What is certain once `text` has come."""
        self._held, self._at = self._held[self._at :] + text, 0
        while self._advance():
            pass
        return self._found.take()

    def finish(self) -> ToolDelta:
        """The rest, when no more comes."""
        held = self._held[self._at :]
        if self._place in (_Place.ARGUMENTS, _Place.REST):
            self._found.end_call()
        elif self._place is _Place.OBJECT:
            self._found.words("".join(self._object))
        elif self._place is _Place.BEFORE:
            self._found.words("".join(self._blank) + held)
        else:
            self._found.words(held)
        self._held, self._at, self._place = "", 0, _Place.WORDS
        return self._found.take()

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
                self._at = self._value.push(self._held, self._at)
                return self._end_call() if self._value.ended else False
            case _:
                return self._advance_words()

    def _advance_before(self) -> bool:
        self._skip_blank()
        if self._held.startswith(TAG, self._at):
            self._at += len(TAG)
            self._blank = []
            return True
        if self._at + partial_length(self._held, TAG, self._at) == len(self._held):
            return False
        if self._held[self._at] == "{":
            self._place, self._object = _Place.OBJECT, []
            self._header, self._value = CallHeader(HEADER_STEPS), JsonObject()
        else:
            self._place = _Place.WORDS
            self._found.words("".join(self._blank))
        self._blank = []
        return True

    def _skip_blank(self) -> None:
        start = self._at
        while self._at < len(self._held) and self._is_blank(self._held[self._at]):
            self._at += 1
        if not self._found.ended:
            self._blank.append(self._held[start : self._at])

    def _is_blank(self, character: str) -> bool:
        return character in SEPARATORS if self._found.ended else character.isspace()

    def _advance_object(self) -> bool:
        start = self._at
        end = self._value.push(self._held, start)
        brace = self._header.push(self._held, start, end)
        self._at = end if brace is None else brace
        self._object.append(self._held[start : self._at])
        if brace is not None and (name := header_name(HEADER, "".join(self._object))) is not None:
            self._found.begin_call(name)
            self._place, self._value = _Place.ARGUMENTS, JsonObject()
            return True
        if self._at < end:  # the name is no JSON: nothing can be shown before the end
            self._object.append(self._held[self._at : end])
            self._at = end
        if not self._value.ended:
            return False
        text = "".join(self._object)
        call = load_json(text)
        if isinstance(call, dict) and isinstance(call.get("name"), str) and ARGUMENTS & set(call):
            self._found.begin_call(call["name"], arguments_text(call))
            return self._end_call()
        self._found.words(text)
        self._place = _Place.WORDS
        return True

    def _advance_arguments(self) -> bool:
        start = self._at
        self._at = self._value.push(self._held, start)
        if self._at > start:
            self._found.arguments(self._held[start : self._at])
        if not self._value.ended:
            return False
        self._place, self._value = _Place.REST, JsonObject(depth=1)
        return True

    def _end_call(self) -> bool:
        self._found.end_call()
        self._place = _Place.BEFORE
        return self._at < len(self._held)

    def _advance_words(self) -> bool:
        start = self._held.find(TAG, self._at)
        border = start if start >= 0 else len(self._held) - partial_length(self._held, TAG, self._at)
        self._found.words(self._held[self._at : border])
        self._at = border
        if start >= 0:
            self._at, self._place = start + len(TAG), _Place.BEFORE
        return start >= 0
