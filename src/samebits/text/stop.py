"""Stop strings, found as if the text came character by character.

How the text is cut into tokens, how many tokens arrive at once and how late anyone looks cannot change where
it ends: at the earliest end of any stop string and, of those that end there, at the longest.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text on and ends it at the first stop string. Text that may begin one is held back."""

    def __init__(self, stops: Sequence[str], keep_match: bool = False) -> None:
        self._stops = tuple(stops)
        self._keep_match = keep_match
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Text that is safe to show after `text` has come. Nothing more may be pushed once `matched` is set."""
        assert self.matched is None, "text after a stop string"
        if not self._stops:
            return text
        self._held += text
        found = [
            (start + len(stop), start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0
        ]
        if found:
            end, start, self.matched = min(found)
            shown, self._held = self._held[: end if self._keep_match else start], ""
            return shown
        border = len(self._held) - self._partial_length()
        shown, self._held = self._held[:border], self._held[border:]
        return shown

    def finish(self) -> str:
        """The text held back, when no more follows and no stop string was found."""
        shown, self._held = self._held, ""
        return shown

    def _partial_length(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
