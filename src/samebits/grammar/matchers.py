"""Masks from grammars: computed in threads of their own, one after another for each request."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cache

import llguidance
import numpy as np

from samebits.errors import RequestError
from samebits.grammar.compiler import GrammarCompiler, GrammarError

THREADS = 4
"""grammars at work at the same time; the library lets go of Python's lock"""


class GrammarMasks:
    """Implements `engine.masks.MaskSource`. Nothing of a grammar is computed in the caller's thread."""

    def __init__(
        self, make_compiler: Callable[[], GrammarCompiler], executor: Executor | None = None
    ) -> None:
        """`make_compiler` is called with the first grammar, in a thread of `executor`, and from then on known."""
        self._compiler = cache(make_compiler)
        self._executor = executor or ThreadPoolExecutor(THREADS, thread_name_prefix="samebits-grammar")

    def matcher(self, grammar: str) -> GrammarMatcher:
        """A matcher at the beginning of an output. The first mask of a grammar that does not compile, or that no
        output of this vocabulary can begin to meet, is a `RequestError`."""
        return GrammarMatcher(self._compiler, grammar, self._executor)


class GrammarMatcher:
    """Implements `engine.masks.Matcher`. Its state is made from the grammar's beginning and the accepted tokens, and
    is this output's own: neither time nor another output can change it."""

    def __init__(self, compiler: Callable[[], GrammarCompiler], grammar: str, executor: Executor) -> None:
        self._compiler = compiler
        self._grammar = grammar
        self._executor = executor
        self._state: llguidance.LLMatcher | None = None
        self._pending: list[int] = []
        """accepted tokens that the state has not seen"""

    def accept(self, token_id: int) -> None:
        self._pending.append(token_id)

    def mask(self) -> Future[np.ndarray]:
        """int32 [ceil(vocabulary / 32)]; asked for when the mask before it has come."""
        tokens, self._pending = self._pending, []
        return self._executor.submit(self._compute, tokens)

    def _compute(self, tokens: list[int]) -> np.ndarray:
        try:
            compiler = self._compiler()
            if self._state is None:
                self._state = compiler.compile(self._grammar).deep_copy()
        except GrammarError as error:
            raise RequestError(str(error), "grammar", "unsupported_value") from error
        state = self._state
        for token_id in tokens:
            state.consume_token(token_id)  # one by one: after the end, that of several fails
        return np.frombuffer(compiler.mask(state), dtype=np.int32)
