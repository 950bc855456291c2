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


class Findings:
    """What a parser has found and not told yet, and how many calls have ended. Of calls after the first `most`
    nothing is told."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._parts: list[str | CallDelta] = []
        self.ended = 0
        """calls, told or not"""

    @property
    def calls(self) -> int:
        """Calls that have ended and are told."""
        return self.ended if self._most is None else min(self.ended, self._most)

    def words(self, text: str) -> None:
        if text:
            self._parts.append(text)

    def begin_call(self, name: str, arguments: str = "") -> None:
        self._add(CallDelta(self.ended, arguments, name))

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that has begun."""
        self._add(CallDelta(self.ended, text))

    def end_call(self) -> None:
        self.ended += 1

    def take(self) -> ToolDelta:
        """Tell all of it."""
        parts, self._parts = self._parts, []
        return ToolDelta(tuple(parts))

    def _add(self, delta: CallDelta) -> None:
        if self._most is None or delta.number < self._most:
            self._parts.append(delta)


class HermesParser:
    """Tells words from calls in a growing text. Each character is looked at a fixed number of times.

    The arguments of a call are the model's own characters, which may be no valid JSON where the model errs or is
    cut short. A block that names no function is words. Blank space before a call and after the last is dropped.
    """

    def __init__(self, most_calls: int | None = None) -> None:
        """Calls after the first `most_calls` are dropped."""
        self._found = Findings(most_calls)
        self._held = ""
        self._at = 0
        """where in what is held to read on"""
        self._blank: list[str] = []
        """blank space that is dropped if a call follows it"""
        self._block: CallBlock | None = None
        """a call whose arguments cannot be shown yet"""
        self._value: JsonObject | None = None
        """the arguments that are being shown"""

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
        if self._block is not None:
            body = self._block.text
            if not self._whole_call(body):
                self._found.words(OPEN + body)
        elif self._value is None and (held or not self._found.ended):
            self._found.words("".join(self._blank) + held)
        if self._value is not None:
            self._found.end_call()
        self._held, self._at, self._blank, self._block, self._value = "", 0, [], None, None
        return self._found.take()

    def _advance(self) -> bool:
        """Read on from what is held; whether there may be more to read."""
        if self._value is not None:
            return self._advance_value(self._value)
        if self._block is not None:
            return self._advance_block(self._block)
        return self._advance_text()

    def _advance_text(self) -> bool:
        start = self._held.find(OPEN, self._at)
        border = start if start >= 0 else len(self._held) - partial_length(self._held, OPEN, self._at)
        words = self._held[self._at : border]
        shown = words.rstrip()
        if shown:
            self._found.words("".join(self._blank) + shown)
            self._blank = []
        self._blank.append(words[len(shown) :])
        self._at = border
        if start >= 0:
            self._at, self._blank, self._block = start + len(OPEN), [], CallBlock()
        return start >= 0

    def _advance_block(self, block: CallBlock) -> bool:
        self._at = block.push(self._held, self._at)
        if block.name is not None:
            self._found.begin_call(block.name)
            self._block, self._value = None, JsonObject()
        elif block.closed:
            body = block.text
            if not self._whole_call(body[: -len(CLOSE)]):
                self._found.words(OPEN + body)
            self._block = None
        return self._block is None

    def _advance_value(self, value: JsonObject) -> bool:
        if not value.ended:
            end = value.push(self._held, self._at)
            if end > self._at:
                self._found.arguments(self._held[self._at : end])
            self._at = end
        if not value.ended:
            return False
        end = self._held.find(CLOSE, self._at)
        if end < 0:
            self._at = len(self._held) - partial_length(self._held, CLOSE, self._at)
            return False
        self._at, self._value = end + len(CLOSE), None
        self._found.end_call()
        return True

    def _whole_call(self, body: str) -> bool:
        """Take a finished body as a call; whether it is one."""
        call = load_json(body)
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return False
        self._found.begin_call(call["name"], arguments_text(call))
        self._found.end_call()
        return True


class CallBlock:
    """A growing call, up to where its arguments begin or to its closing tag, whichever comes first."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._tail = ""
        """the last characters that have come, in which a closing tag may have begun"""
        self._header = CallHeader()
        self.name: str | None = None
        """of the function, once its arguments begin"""
        self.closed = False

    @property
    def text(self) -> str:
        """All that has come."""
        return "".join(self._pieces)

    def push(self, text: str, start: int) -> int:
        """Read on from text[start]; returns where to go on: at the arguments, behind the closing tag, or at the end."""
        end = self._closing_end(text, start)
        limit = len(text) if end is None else end
        brace = self._header.push(text, start, limit)
        stop = limit if brace is None else brace
        self._pieces.append(text[start:stop])
        if brace is not None:
            self.name = header_name(HEADER, self.text)
            if self.name is None:  # the name is no JSON: nothing can be shown before the end
                self._pieces.append(text[stop:limit])
        self._tail = (self._tail + text[max(start, limit - len(CLOSE)) : limit])[1 - len(CLOSE) :]
        if self.name is not None:
            return stop
        self.closed = end is not None
        return limit

    def _closing_end(self, text: str, start: int) -> int | None:
        """Where the first closing tag ends, which may have begun in what came before."""
        both = self._tail + text[start : start + len(CLOSE) - 1]
        if (found := both.find(CLOSE)) >= 0:
            return start + found + len(CLOSE) - len(self._tail)
        found = text.find(CLOSE, start)
        return found + len(CLOSE) if found >= 0 else None


Steps = tuple[dict[str, int], ...]
"""What a header is made of, blank space between: each of a step's words, and the step behind it. A step without
words is a string, and the step behind it the next one."""
LAST = -1
"""the step behind a header"""
HEADER_STEPS: Steps = (
    {"{": 1}, {'"name"': 2}, {":": 3}, {}, {",": 5}, {'"arguments"': 6, '"parameters"': 6}, {":": 7}, {"{": LAST},
)  # fmt: skip


class CallHeader:
    """Finds where the arguments begin in a growing text; with `HEADER_STEPS`, what it accepts is `HEADER`."""

    def __init__(self, steps: Steps = HEADER_STEPS) -> None:
        self._steps = steps
        self._step = 0
        self._word = ""
        """what has come of the step; of a string, its state: an open one, or one with a backslash before"""
        self._failed = False

    def push(self, text: str, start: int, end: int) -> int | None:
        """Read text[start:end]; returns the place of the arguments' brace, once."""
        for place in range(start, end):
            if self._failed:
                return None
            if self._see(text[place]):
                return place
        return None

    def _see(self, character: str) -> bool:
        """Take one character; whether it is the last one."""
        if not self._word and character.isspace():
            return False
        words = self._steps[self._step]
        behind: int | None
        if words:
            self._word += character
            self._failed = not any(word.startswith(self._word) for word in words)
            behind = words.get(self._word)
        else:
            behind = self._step + 1 if self._see_string(character) else None
        if behind is not None:
            self._step, self._word = behind, ""
            self._failed = behind == LAST  # nothing more is looked for
        return behind == LAST

    def _see_string(self, character: str) -> bool:
        """Whether a string ends here."""
        if not self._word:
            self._word, self._failed = '"', character != '"'
        elif self._word == "\\":
            self._word, self._failed = '"', character == "\n"
        elif character == '"':
            return True
        elif character == "\\":
            self._word = "\\"
        return False


def header_name(header: re.Pattern[str], text: str) -> str | None:
    """The function's name in a call's text ahead of the arguments' brace; None where it is no JSON."""
    found = header.match(text + "{")
    name = load_json(found.group(1)) if found else None
    return name if isinstance(name, str) else None


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

    def push(self, text: str, start: int = 0) -> int:
        """Read on from text[start]; returns where the object ended, or the text. A `<` outside a string is no JSON,
        and ends it."""
        for place in range(start, len(text)):
            character = text[place]
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
                return place
            if character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return place + 1
        return len(text)


def load_json(text: str) -> object:
    """A JSON value, or None for what is none. A string with half a surrogate pair, which a model may well write, is no
    text that could be sent on."""
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value
