"""Compiled grammars of one tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import llguidance

from samebits.grammar.language import UNFORCED
from samebits.grammar.schema import OPEN_OPTIONS, OPTIONS
from samebits.grammar.vocabulary import MASK_BITS, completed
from samebits.tokenizer_files import read_tokenizer

KEPT = 128
"""grammars kept compiled"""
LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "max_grammar_size": 500_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 250_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
}
"""What a grammar may cost. Counted in work, never in time, so that a grammar fails at the same token everywhere."""


DEAD_END = "NoExtensionBias"
"""the library's word for a state in which it finds no token"""
UNWRITABLE = "no token that the model knows can follow: the grammar demands what cannot be written"


class GrammarError(Exception):
    """A grammar that cannot be compiled, or that cannot go on."""


def grammar_version() -> str:
    """What decides masks, beside the request and the tokenizer: the library's version and our settings of it."""
    settings = json.dumps([LIMITS, OPTIONS, OPEN_OPTIONS, UNFORCED], sort_keys=True)
    return f"{llguidance.get_version()}, settings {hashlib.sha256(settings.encode()).hexdigest()[:12]}"


class GrammarCompiler:
    """Compiles grammars for a tokenizer. May be used from several threads at once."""

    def __init__(
        self,
        tokenizer: llguidance.LLTokenizer,
        vocabulary: int,
        limits: Mapping[str, int] = LIMITS,
    ) -> None:
        """`vocabulary` is the model's, which may be larger than the tokenizer's, or smaller (`vocabulary.py`)."""
        self.tokenizer = tokenizer
        self.mask_words = -(-vocabulary // MASK_BITS)
        """length of a mask; the library's own may be longer"""
        self._limits = llguidance.LLParserLimits(**limits, verbose_errors=False)  # type: ignore[arg-type]
        self._compiled = lru_cache(maxsize=KEPT)(self._compile)

    def compile(self, text: str) -> llguidance.LLMatcher:
        """A matcher at its beginning, to be copied and never used itself: what one output made the library remember
        must not reach another. Raises `GrammarError`, also where no token of the vocabulary can begin an output."""
        return self._compiled(text)

    def _compile(self, text: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self.tokenizer, text, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise GrammarError(error_text(matcher))
        warnings = matcher.get_grammar_warnings()
        if warnings:
            raise GrammarError(warnings[0])
        self.mask(matcher.deep_copy())
        return matcher

    def mask(self, matcher: llguidance.LLMatcher) -> bytes:
        """What may come next: `mask_words` words of 32 bits. Raises `GrammarError` if nothing can, and for work beyond
        the limits: the library answers both with a mask that ends the output."""
        bits = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            raise GrammarError(error_text(matcher))
        mask = bits[: self.mask_words * MASK_BITS // 8]
        if not mask.strip(b"\0"):  # what may come is none of the model's tokens, but a byte that it lacks
            raise GrammarError(UNWRITABLE)
        return mask


def make_compiler(
    tokenizer_json: str, vocabulary: int, eos_token_ids: Sequence[int], limits: Mapping[str, int] = LIMITS
) -> GrammarCompiler:
    """The compiler that masks are made with. An output that is complete goes on with one of `eos_token_ids`.

    Takes seconds for a vocabulary of 150,000 tokens, and keeps Python's lock. Raises `GrammarError` for a tokenizer
    that the library cannot read.
    """
    try:
        tokenizer = llguidance.LLTokenizer(
            tokenizer_json, n_vocab=vocabulary, eos_token=_checked_ends(eos_token_ids)
        )
    except Exception as error:  # the Rust library raises nothing more specific
        raise GrammarError(f"this checkpoint's tokenizer cannot be constrained: {error}") from error
    return GrammarCompiler(completed(tokenizer, vocabulary, eos_token_ids), vocabulary, limits)


def make_checker(
    added_tokens: Mapping[str, int], vocabulary: int, eos_token_ids: Sequence[int]
) -> GrammarCompiler:
    """A compiler for finding out whether a grammar compiles, made at once: of the vocabulary it knows the single
    bytes, and the added tokens, which grammars may name."""
    ends = _checked_ends(eos_token_ids)
    tokens = [b""] * max(vocabulary, 256 + len(added_tokens))
    for text, token_id in added_tokens.items():
        tokens[token_id] = text.encode()
    taken = {*ends, *added_tokens.values()}
    free = (token_id for token_id in range(len(tokens)) if token_id not in taken)
    for byte, token_id in zip(range(256), free, strict=False):
        tokens[token_id] = bytes([byte])
    wrapped = llguidance.TokenizerWrapper(_ByteTokens(tokens, ends[0], sorted(taken)))
    return GrammarCompiler(llguidance.LLTokenizer(wrapped, eos_token=ends, slices=[]), len(tokens))


@dataclass(frozen=True)
class _ByteTokens:
    """A tokenizer as the library takes one."""

    tokens: list[bytes]
    eos_token_id: int
    special_token_ids: list[int]
    bos_token_id: int | None = None

    def __call__(self, text: bytes) -> list[int]:
        places = {token: token_id for token_id, token in enumerate(self.tokens) if len(token) == 1}
        return [places[bytes([byte])] for byte in text]


def _checked_ends(eos_token_ids: Sequence[int]) -> list[int]:
    if not eos_token_ids:
        raise GrammarError("this checkpoint names no end-of-sequence token, which a grammar ends with")
    return list(eos_token_ids)


def read_compiler(folder: str | os.PathLike[str], vocabulary: int, eos: Sequence[int]) -> GrammarCompiler:
    """`make_compiler` for the checkpoint in `folder`, which has a tokenizer."""
    found = read_tokenizer(Path(folder))
    if found is None:
        raise GrammarError("this checkpoint has no tokenizer")
    return make_compiler(found[0].to_str(), vocabulary, eos)


def error_text(matcher: llguidance.LLMatcher) -> str:
    """What went wrong, in one line."""
    if matcher.get_error().startswith(DEAD_END):
        return UNWRITABLE
    lines = [line.strip() for line in matcher.get_error().splitlines() if not line.startswith("<")]
    kept = [line for line in lines if line and set(line) != {"^"}]
    return " ".join(kept)[:500] or "the grammar failed"
