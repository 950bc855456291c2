"""Text that counts the work done on it: for tests that work grows with the text alone, whatever the machine's speed."""

from __future__ import annotations

import re
from typing import Any


class Counted(str):
    """Text that counts how many characters its methods look at or copy."""

    looked = 0

    def _count(self, characters: int, result: Any) -> Any:
        Counted.looked += characters
        return Counted(result) if isinstance(result, str) else result

    def find(self, wanted: str, start: int = 0) -> int:  # type: ignore[override]
        place = super().find(wanted, start)
        return self._count((place if place >= 0 else len(self)) - start + len(wanted), place)

    def startswith(self, wanted: str, start: int = 0) -> bool:  # type: ignore[override]
        return self._count(len(wanted), super().startswith(wanted, start))

    def strip(self, characters: str | None = None) -> str:  # type: ignore[override]
        return self._count(len(self), super().strip(characters))

    def lstrip(self, characters: str | None = None) -> str:  # type: ignore[override]
        return self._count(len(self), super().lstrip(characters))

    def rstrip(self, characters: str | None = None) -> str:  # type: ignore[override]
        return self._count(len(self), super().rstrip(characters))

    def __add__(self, other: str) -> str:
        return self._count(len(self) + len(other), super().__add__(other))

    def __radd__(self, other: str) -> str:
        return self._count(len(self) + len(other), other.__add__(self))

    def __getitem__(self, place: Any) -> str:
        part = super().__getitem__(place)
        return self._count(len(part), part)


class CountedPattern:
    """A pattern that counts the text that it is given."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def match(self, text: str) -> re.Match[str] | None:
        Counted.looked += len(text)
        return self._pattern.match(text)
