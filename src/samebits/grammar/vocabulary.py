"""Vocabularies that lack bytes, completed for the library.

It takes it that a tokenizer writes every text: it tokenizes what a grammar forces, and lets the first of these tokens
come next. A tokenizer that has no token for some byte leaves that byte out, and the mask would be that of another
text. So missing bytes get ids behind the model's own, which every mask is cut before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import llguidance

UTF8_BYTES = frozenset(range(0x100)) - {0xC0, 0xC1, *range(0xF5, 0x100)}
"""bytes that a text may hold"""
MASK_BITS = 32
"""ids that share a word of a mask"""


def completed(
    tokenizer: llguidance.LLTokenizer, vocabulary: int, eos_token_ids: Sequence[int]
) -> llguidance.LLTokenizer:
    """`tokenizer`, or one that can write every text with ids beyond those of a mask for `vocabulary` tokens."""
    special = sorted({i for i in range(vocabulary) if tokenizer.is_special_token(i)} | {*eos_token_ids})
    tokens = [tokenizer.decode_bytes([token_id]) for token_id in range(vocabulary)]
    plain = {tokens[i]: i for i in sorted({*range(vocabulary)} - {*special}, reverse=True)}
    missing = [bytes([byte]) for byte in sorted(UTF8_BYTES) if bytes([byte]) not in plain]
    if not missing:
        return tokenizer
    tokens += [b""] * (-vocabulary % MASK_BITS)
    added = {byte: len(tokens) + number for number, byte in enumerate(missing)}
    complete = _CompletedTokens(tokens + missing, eos_token_ids[0], special, tokenizer, plain, added)
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(complete), eos_token=list(eos_token_ids))


@dataclass(frozen=True)
class _CompletedTokens:
    """A tokenizer as the library takes one. Texts that the checkpoint's own can write are left to that."""

    tokens: list[bytes]
    eos_token_id: int
    special_token_ids: list[int]
    own: llguidance.LLTokenizer
    plain: dict[bytes, int]
    """ids of the model's tokens that are text; the lowest, where several are the same text"""
    added: dict[bytes, int]
    """ids of the bytes that the model lacks"""
    bos_token_id: int | None = None
    longest: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "longest", max(map(len, self.plain), default=1))

    def __call__(self, text: bytes) -> list[int]:
        found: list[int] = self.own.tokenize_bytes(text)
        return found if self._spelled(found) == text else self._fewest(text)

    def _spelled(self, token_ids: list[int]) -> bytes:
        return b"".join(self.tokens[token_id] for token_id in token_ids)

    def _fewest(self, text: bytes) -> list[int]:
        """The fewest tokens that write `text`, of those with the fewest added ones."""
        best: list[tuple[int, list[int]]] = [(0, [])]
        for end in range(1, len(text) + 1):
            choices = []
            for start in range(max(0, end - self.longest), end):
                piece, (lacking, before) = text[start:end], best[start]
                if piece in self.plain:
                    choices.append((lacking, [*before, self.plain[piece]]))
                elif piece in self.added:
                    choices.append((lacking + 1, [*before, self.added[piece]]))
            # A byte may be missing that no text holds: it ends what can be written.
            best.append(min(choices, key=lambda one: (one[0], len(one[1])), default=best[-1]))
        return best[-1][1]
