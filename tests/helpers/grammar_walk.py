"""Random outputs of a grammar: walks along its masks, as a model without opinions would take them."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tiny_tokenizer import make_tokenizer

from samebits.grammar.compiler import GrammarCompiler, make_compiler
from samebits.grammar.language import Grammar
from samebits.grammar.matchers import GrammarMasks, GrammarMatcher
from samebits.models.locate import BUNDLED
from samebits.text.tokenizer import Tokenizer, load_tokenizer

EOS = {"bundled": [4087, 4089], "tiny": [0]}
PULL = b'"}],: 0123456789'
"""what a walk is drawn to, so that it ends"""


class Immediate(Executor):
    """Runs everything at once, in the caller's thread."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@cache
def tokenizer(name: str = "bundled") -> Tokenizer:
    if name == "tiny":
        return Tokenizer(make_tokenizer())
    loaded = load_tokenizer(Path(BUNDLED[name]))
    assert loaded is not None
    return loaded


@cache
def compiler(name: str = "bundled", padding: int = 0) -> GrammarCompiler:
    return new_compiler(name, padding)


def new_compiler(name: str = "bundled", padding: int = 0, **options: Any) -> GrammarCompiler:
    """A compiler that has done nothing yet, for a model with `padding` more ids than its tokenizer."""
    known = tokenizer(name)
    return make_compiler(known._backend.to_str(), known.vocabulary + padding, EOS[name], **options)


def new_matcher(grammar: Grammar, made: GrammarCompiler) -> GrammarMatcher:
    return GrammarMasks(lambda: made, Immediate()).matcher(grammar.text)


def allowed_ids(mask: np.ndarray) -> list[int]:
    bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


@cache
def ending_ids(name: str) -> frozenset[int]:
    """Tokens that begin with what a walk is drawn to."""
    known = tokenizer(name)
    return frozenset(
        i for i in range(known.vocabulary) if known.token_bytes(i)[:1] in {bytes([b]) for b in PULL}
    )


def walk(grammar: Grammar, seed: int, most: int = 300, name: str = "bundled") -> tuple[list[int], bool]:
    """(output tokens without the end, whether it came to its end)."""
    chooser = Random(seed)
    matcher, ends, ending = new_matcher(grammar, compiler(name)), set(EOS[name]), ending_ids(name)
    tokens: list[int] = []
    while len(tokens) < most:
        allowed = allowed_ids(matcher.mask().result())
        if not ends.isdisjoint(allowed) and chooser.random() < 0.5:
            return tokens, True
        pulled = sorted(ending.intersection(allowed))
        token_id = chooser.choice(pulled if pulled and chooser.random() < 0.7 else allowed)
        if token_id in ends:
            return tokens, True
        matcher.accept(token_id)
        tokens.append(token_id)
    return tokens, False


def text_of(tokens: list[int], name: str = "bundled") -> str:
    """The text, which must be valid UTF-8."""
    return b"".join(tokenizer(name).token_bytes(token_id) for token_id in tokens).decode("utf-8")


def accepts(grammar: Grammar, text: str, name: str = "bundled") -> bool:
    """Whether `text`, as the tokenizer cuts it, may be the whole output."""
    matcher = new_matcher(grammar, compiler(name))
    for token_id in tokenizer(name).encode(text, add_special_tokens=False):
        if token_id not in allowed_ids(matcher.mask().result()):
            return False
        matcher.accept(token_id)
    return bool(set(allowed_ids(matcher.mask().result())) & set(EOS[name]))
