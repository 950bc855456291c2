"""Thoughts between `<think>` and `</think>` at the beginning of an answer, told from what follows, as they come.

The split depends on the text alone, never on the pieces that it comes in.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from samebits.text.tags import partial_length

OPEN, CLOSE = "<think>", "</think>"


class _Place(Enum):
    BEFORE = 1
    THOUGHTS = 2
    AFTER = 3
    ANSWER = 4


def thinks(template_source: str) -> bool:
    """Whether a chat template knows thoughts in an assistant's message."""
    return CLOSE in template_source


def opens_thoughts(prompt: str) -> bool:
    """Whether a rendered prompt ends inside thoughts, so that the answer begins there."""
    return prompt.rstrip().endswith(OPEN)


def count_thoughts(pieces: Iterable[str], inside: bool = False) -> int:
    """How many of the pieces that a text comes in its thoughts take, with their tags. `inside` as for the splitter."""
    splitter = ReasoningSplitter(inside)
    count = 0
    for piece in pieces:
        splitter.push(piece)
        count += 1
        if splitter.answers:
            break
    return count if splitter.thought else 0


class ReasoningSplitter:
    """Splits a growing text into (thoughts, answer).

    Thoughts count only where the text begins with them, blank space aside. New lines around them belong to
    neither part. Thoughts that never close are thoughts to the end.
    """

    def __init__(self, inside: bool = False) -> None:
        """`inside`: the prompt has opened the thoughts."""
        self._place = _Place.THOUGHTS if inside else _Place.BEFORE
        self._held = ""
        self._at_start = True
        self.thought = inside
        """whether thoughts have begun"""

    @property
    def answers(self) -> bool:
        """Whether the thoughts, if any, are over."""
        return self._place in (_Place.AFTER, _Place.ANSWER)

    def push(self, text: str) -> tuple[str, str]:
        """The (thoughts, answer) that are certain once `text` has come."""
        self._held += text
        thoughts = answer = ""
        if self._place is _Place.BEFORE:
            stripped = self._held.lstrip()
            if stripped.startswith(OPEN):
                self._held = stripped[len(OPEN) :]
                self._place = _Place.THOUGHTS
                self.thought = True
            elif not OPEN.startswith(stripped):
                self._place = _Place.ANSWER
        if self._place is _Place.THOUGHTS:
            thoughts = self._thoughts()
        if self._place is _Place.AFTER:
            self._held = self._held.lstrip("\n")
            if self._held:
                self._place = _Place.ANSWER
        if self._place is _Place.ANSWER:
            answer, self._held = self._held, ""
        return thoughts, answer

    def finish(self) -> tuple[str, str]:
        """The rest, when no more comes."""
        rest, self._held = self._held, ""
        if self._place is _Place.THOUGHTS:
            return rest.rstrip("\n"), ""
        return "", rest

    def _thoughts(self) -> str:
        if self._at_start:
            self._held = self._held.lstrip("\n")
            self._at_start = not self._held
        end = self._held.find(CLOSE)
        if end >= 0:
            shown, self._held = self._held[:end].rstrip("\n"), self._held[end + len(CLOSE) :]
            self._place = _Place.AFTER
            return shown
        border = len(self._held) - partial_length(self._held, CLOSE)
        border = len(self._held[:border].rstrip("\n"))
        shown, self._held = self._held[:border], self._held[border:]
        return shown
