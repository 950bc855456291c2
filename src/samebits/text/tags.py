"""Tags in a text that comes piece by piece."""

from __future__ import annotations


def partial_length(text: str, tag: str, start: int = 0) -> int:
    """Length of the longest end of text[start:] that begins `tag` without completing it."""
    for length in range(min(len(tag) - 1, len(text) - start), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0
