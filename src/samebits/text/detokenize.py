"""Token ids to text, one token at a time, without ever emitting half a character.

Two kinds of decoder exist. In a byte-level vocabulary every token is a fixed string of bytes, so the stream is
a plain incremental UTF-8 decoder. Any other decoder is asked for the text of a short window of tokens, twice.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
"""What invalid bytes decode to."""
LONGEST_CHARACTER = 4
"""bytes, and so tokens"""


class Detokenizer(Protocol):
    """Text of a growing list of tokens."""

    def push(self, token_id: int) -> str:
        """The characters that `token_id` completes; empty while a character is unfinished."""

    def finish(self) -> str:
        """What is left when no token follows: unfinished bytes as U+FFFD."""


def byte_level_alphabet() -> dict[str, int]:
    """The byte that each printable stand-in of a byte-level vocabulary means."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def byte_level_bytes(token: str, alphabet: dict[str, int]) -> bytes:
    """The bytes of a vocabulary entry; an added token outside the alphabet stands for its own UTF-8."""
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return token.encode("utf-8")


class ByteLevelDetokenizer:
    """Detokenizer of a byte-level vocabulary. `token_bytes` gives b"" for tokens that are left out."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """Detokenizer over any `decode` of a list of ids.

    The text of the tokens since the last character border is the difference between decoding them with and
    without the tokens before it, which gives decoders that look at neighbours (leading spaces) their context.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        """`before`: tokens of the text that goes on here, such as a prompt's. Half a character at their end is left
        alone."""
        self._decode = decode
        lasts = (list(before[-count:]) for count in range(1, LONGEST_CHARACTER + 1))
        self._window: list[int] = next((last for last in lasts if not decode(last).endswith(REPLACEMENT)), [])
        self._read = len(self._window)
        """tokens of the window whose text is out"""

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        text, known = self._decode(self._window), self._decode(self._window[: self._read])
        if text.endswith(REPLACEMENT) or len(text) <= len(known):
            return ""
        self._window = self._window[self._read :]
        self._read = len(self._window)
        return text[len(known) :]

    def finish(self) -> str:
        rest = self._decode(self._window)[len(self._decode(self._window[: self._read])) :]
        self._read = len(self._window)
        return rest
