"""Answers as bits, and the first place where two of them differ.

Text is never compared: two texts can be equal while every logprob differs, and a difference of one bit today
is a different token tomorrow.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from samebits.errors import EngineError

TokenId = int | str
"""An id; the token's text where a server does not tell ids."""
CUT_SHORT = ("abort", "deadline", "error")
"""How answers end, by whatever API, that others than the model ended."""


def float_bits(value: float) -> int:
    """The 32 bits of `value` as a float32, as an unsigned integer. -0 and +0 differ, a NaN equals itself."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def bits_float(bits: int) -> float:
    """The float32 that has these bits."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


@dataclass(frozen=True)
class TokenBits:
    """One token and the bits of its logprob; None where a position has none (the first of a prompt)."""

    token: TokenId
    bits: int | None

    def __str__(self) -> str:
        if self.bits is None:
            return f"token {self.token}, no logprob"
        return f"token {self.token}, logprob {bits_float(self.bits):.9g} (0x{self.bits:08x})"


@dataclass(frozen=True)
class Answer:
    """What a target said to one prompt."""

    output: tuple[TokenBits, ...]
    prompt: tuple[TokenBits, ...] = ()
    """Every prompt token with its logprob, when asked for."""
    cached_tokens: int | None = None
    """Prompt tokens that came out of a prefix cache; None where the server does not say. Where it says only how many
    there were in a request, the first answer of the request has them all."""

    @property
    def output_ids(self) -> tuple[TokenId, ...]:
        return tuple(entry.token for entry in self.output)


def check_whole(answer: Answer, ending: str, message: str = "") -> None:
    """Raise `EngineError` for an answer that was ended early, whose length says nothing of bits, and for one without
    bits, which is equal to any other such one."""
    if ending in CUT_SHORT:
        reason = f" ({message})" if message else ""
        raise EngineError(
            f"an answer was cut short: it ended after {len(answer.output)} tokens with {ending!r}{reason}, which says "
            "nothing of bits; check again where nothing ends requests early"
        )
    if not answer.output:
        raise EngineError("an answer has no token: there are no bits to compare")
    for position, entry in enumerate(answer.output):
        if entry.bits is None:
            raise EngineError(
                f"output token {position} of an answer has no logprob: there are no bits to compare"
            )


@dataclass(frozen=True)
class Difference:
    """The first position at which two answers differ. A side that had already ended is None."""

    where: str
    """`output` or `prompt`"""
    position: int
    expected: TokenBits | None
    found: TokenBits | None
    circumstance: str
    """How the answer that differs was asked for: `batch of 17, member 3`."""

    def __str__(self) -> str:
        return (
            f"first difference at {self.where} position {self.position} ({self.circumstance}): "
            f"expected {self.expected or 'the end'}; found {self.found or 'the end'}"
        )


def first_difference(
    expected: Sequence[TokenBits], found: Sequence[TokenBits], where: str, circumstance: str
) -> Difference | None:
    """The first differing position of two sequences, a missing tail included; None when all bits are equal."""
    for position in range(max(len(expected), len(found))):
        left = expected[position] if position < len(expected) else None
        right = found[position] if position < len(found) else None
        if left != right:
            return Difference(where, position, left, right, circumstance)
    return None


def compare(expected: Answer, found: Answer, circumstance: str) -> Difference | None:
    """The first difference of two answers, prompts first."""
    return first_difference(expected.prompt, found.prompt, "prompt", circumstance) or first_difference(
        expected.output, found.output, "output", circumstance
    )
