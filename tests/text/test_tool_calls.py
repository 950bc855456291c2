"""The Hermes parser looks at each character a fixed number of times, however long a call stays open."""

from __future__ import annotations

from typing import Any

import pytest

from samebits.text import tool_calls
from samebits.text.tool_calls import CLOSE, OPEN, HermesParser

LENGTH = 12_000


class Counted(str):
    """Text that counts how many characters its methods look at or copy."""

    looked = 0

    def _count(self, characters: int, result: Any) -> Any:
        Counted.looked += characters
        return Counted(result) if isinstance(result, str) else result

    def find(self, wanted: str, start: int = 0) -> int:  # type: ignore[override]
        place = super().find(wanted, start)
        return self._count((place if place >= 0 else len(self)) - start + len(wanted), place)

    def rstrip(self) -> str:  # type: ignore[override]
        return self._count(len(self), super().rstrip())

    def strip(self) -> str:  # type: ignore[override]
        return self._count(len(self), super().strip())

    def __add__(self, other: str) -> str:
        return self._count(len(self) + len(other), super().__add__(other))

    def __radd__(self, other: str) -> str:
        return self._count(len(self) + len(other), other.__add__(self))

    def __getitem__(self, place: Any) -> str:
        part = super().__getitem__(place)
        return self._count(len(part), part)


class CountedHeader:
    """A pattern that counts the text that it is given."""

    def match(self, text: str) -> Any:
        Counted.looked += len(text)
        return HEADER.match(text)


HEADER = tool_calls.HEADER
TEXTS = {
    "open": OPEN + "words " * (LENGTH // 6),
    "open name": OPEN + '{"name": "' + "{" * LENGTH,
    "open arguments": OPEN + '{"name": "f", "arguments": {"a": "' + "x<{" * (LENGTH // 3),
    "bad name": OPEN + '{"name": "\\q", "arguments": {' + "{" * LENGTH,
    "blank": "a" + " \n" * (LENGTH // 2),
    "blank block": OPEN + " " * LENGTH,
    "calls": (OPEN + '{"name": "f", "arguments": {}}' + CLOSE) * (LENGTH // 54),
    "blocks": (OPEN + CLOSE) * (LENGTH // 23),
    "openings": OPEN * (LENGTH // 11),
}


@pytest.mark.parametrize("size", [1, 5, LENGTH * 2])
@pytest.mark.parametrize("name", TEXTS)
def test_work_grows_with_the_text_alone(monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    monkeypatch.setattr(tool_calls, "HEADER", CountedHeader())
    text, parser = TEXTS[name], HermesParser()
    Counted.looked = 0
    for start in range(0, len(text), size):
        parser.push(Counted(text[start : start + size]))
    parser.finish()
    assert len(text) / 2 < Counted.looked < 100 * len(text)


def test_work_beyond_that_would_be_counted() -> None:
    """The inverse: a reader that looks at all that has come with each character."""
    Counted.looked, held = 0, Counted("")
    for character in TEXTS["open"]:
        held = held + character
        held.find(CLOSE)
    assert Counted.looked > 1000 * LENGTH
