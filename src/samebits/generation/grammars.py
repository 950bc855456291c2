"""What a request asks of its output, checked before the engine sees it."""

from __future__ import annotations

from threading import Lock

from samebits.engine.messages import EngineFacts
from samebits.errors import RequestError
from samebits.grammar.compiler import GrammarCompiler, GrammarError, make_checker
from samebits.grammar.language import (
    Grammar,
    Part,
    choice_part,
    grammar_of,
    native_grammar,
    regex_part,
    schema_part,
    text_part,
)
from samebits.sampling_params import SamplingParams
from samebits.text.tokenizer import Tokenizer


class GrammarChecker:
    """Refuses what does not compile. What depends on the whole vocabulary is left to the engine, which refuses it in
    the same way. May be used from several threads at once; blocks while it compiles."""

    def __init__(self, tokenizer: Tokenizer | None, facts: EngineFacts) -> None:
        self._tokenizer = tokenizer
        self._facts = facts
        self._compiler: GrammarCompiler | None = None
        self._lock = Lock()

    def check(self, grammar: Grammar) -> None:
        """Raise `RequestError` naming the field whose grammar does not compile."""
        for part in grammar.parts:
            self._check(grammar_of(part))
        self._check(grammar)

    def _check(self, grammar: Grammar) -> None:
        try:
            self._made_compiler().compile(grammar.text)
        except GrammarError as error:
            raise RequestError(f"{grammar.field}: {error}", grammar.field, "unsupported_value") from error

    def _made_compiler(self) -> GrammarCompiler:
        with self._lock:
            if self._compiler is None:
                if self._tokenizer is None:
                    raise GrammarError("this checkpoint has no tokenizer")
                facts = self._facts
                self._compiler = make_checker(
                    self._tokenizer.added_tokens, facts.vocabulary, facts.eos_token_ids
                )
            return self._compiler


def grammar_of_params(params: SamplingParams) -> Grammar | None:
    """The grammar that sampling parameters ask for. Raises `RequestError` naming the field."""
    if params.llguidance is not None:
        return native_grammar(params.llguidance, "llguidance")
    part: Part | None = None
    if params.json_schema is not None:
        part = schema_part(params.json_schema, "json_schema")
    elif params.regex is not None:
        part = regex_part(params.regex, "regex")
    elif params.choice is not None:
        part = choice_part(params.choice, "choice")
    elif params.ebnf is not None:
        part = text_part(params.ebnf, "ebnf")
    return None if part is None else grammar_of(part)
