"""Grammars of answers: thoughts, calls and forms, where tags are tokens and where they are text."""

from __future__ import annotations

import json

import pytest
from grammar_walk import accepts, text_of, tokenizer, walk

from samebits.grammar.language import Grammar, schema_part
from samebits.text.answer import AnswerParser
from samebits.text.output_grammar import CallRules, Thoughts, output_grammar
from samebits.text.reasoning import ReasoningSplitter
from samebits.text.tool_formats import HERMES, LLAMA, ToolFormat

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
PARTS = {
    "weather": schema_part(CITY, "tools[0]"),
    'say "é"': schema_part({"type": "object", "additionalProperties": {"type": "integer"}}, "tools[1]"),
}
ANSWER = schema_part(
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, "format"
)
FORMS = {"hermes": HERMES, "llama3": LLAMA}
CALLS = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>',
    "llama3": '{"name": "weather", "parameters": {"city": "Zürich"}}',
}
OTHERS = {
    "hermes": '<tool_call>\n{"name": "say \\"é\\"", "arguments": {"n": 4}}\n</tool_call>',
    "llama3": '{"name": "say \\"é\\"", "parameters": {"n": 4}}',
}
TOKENS = ["bundled", "tiny"]
"""tokenizers: with the tags as tokens, and without"""


def made(
    tokens: str,
    thoughts: Thoughts = Thoughts.NONE,
    form: ToolFormat | None = None,
    answer: bool = False,
    forced: bool = True,
    single: bool = False,
) -> Grammar:
    calls = None if form is None else CallRules(form, PARTS, forced, single)
    grammar = output_grammar(tokenizer(tokens).added_id, thoughts, ANSWER if answer else None, calls)
    assert grammar is not None
    return grammar


def test_the_tags_are_tokens_of_one_tokenizer_only() -> None:
    assert tokenizer("bundled").added_id("<tool_call>") is not None
    assert tokenizer("tiny").added_id("<tool_call>") is None


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("form", FORMS)
def test_forced_calls(tokens: str, form: str) -> None:
    grammar = made(tokens, form=FORMS[form])
    call, other, between = CALLS[form], OTHERS[form], FORMS[form].between
    assert accepts(grammar, call, tokens)
    assert accepts(grammar, call + between + other, tokens)
    for text in ("", "words", "words " + call, call + " words", call.replace("weather", "other"), call[:-3]):
        assert not accepts(grammar, text, tokens), text
    assert not accepts(grammar, call.replace("Zürich", "a town that is too long"), tokens)
    one = made(tokens, form=FORMS[form], single=True)
    assert accepts(one, call, tokens) and not accepts(one, call + between + other, tokens)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("form", FORMS)
def test_strict_calls_leave_words_free(tokens: str, form: str) -> None:
    grammar = made(tokens, form=FORMS[form], forced=False)
    call = CALLS[form]
    for text in ("", "words", "a { b <tool", "日本 <b>", call, call + FORMS[form].between + OTHERS[form]):
        assert accepts(grammar, text, tokens), text
    assert accepts(grammar, f"Well. {call}\nDone.", tokens)
    assert not accepts(grammar, call.replace('"Zürich"', "7"), tokens)
    if form == "hermes":
        assert not accepts(grammar, "words " + call.replace('"Zürich"', "7"), tokens)
        assert not accepts(grammar, "<tool_call>nothing", tokens)


@pytest.mark.parametrize("tokens", TOKENS)
def test_an_answer_or_calls(tokens: str) -> None:
    grammar = made(tokens, form=HERMES, answer=True, forced=False)
    for text in ('{"a": 1}', CALLS["hermes"]):
        assert accepts(grammar, text, tokens)
    for text in ("words", '{"b": 1}', '{"a": 1}' + CALLS["hermes"]):
        assert not accepts(grammar, text, tokens)
    forced = made(tokens, form=HERMES, answer=True)
    assert accepts(forced, CALLS["hermes"], tokens) and not accepts(forced, '{"a": 1}', tokens)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("form", [None, "hermes", "llama3"])
def test_thoughts_before_an_answer(tokens: str, form: str | None) -> None:
    body = '{"a": 1}' if form is None else CALLS[form]
    rules = {"form": FORMS[form]} if form else {"answer": True}
    may = made(tokens, Thoughts.MAY_COME, **rules)
    open_ = made(tokens, Thoughts.ARE_OPEN, **rules)
    none = made(tokens, **rules)
    thoughts = "<think>\nhm, {a} 漢 </thin\n</think>"
    for gap in ("", "\n", "\n\n"):
        assert accepts(may, thoughts + gap + body, tokens)
        assert accepts(open_, (thoughts + gap + body).removeprefix("<think>"), tokens)
    assert accepts(may, body, tokens) and accepts(none, body, tokens)
    for text in (thoughts, thoughts + "\n\n\n" + body, thoughts + "words" + body, "<think>" + body):
        assert not accepts(may, text, tokens), text
    assert not accepts(none, thoughts + body, tokens)
    assert not accepts(open_, body, tokens)


def test_nothing_asked_nothing_enforced() -> None:
    assert output_grammar(tokenizer().added_id, Thoughts.MAY_COME, None, None) is None


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("thoughts", Thoughts)
def test_forced_outputs_are_read_as_calls(tokens: str, form: str, thoughts: Thoughts) -> None:
    """What the grammar lets through, the parser of the same format finds, whole."""
    grammar = made(tokens, thoughts, FORMS[form])
    found = 0
    for seed in range(12):
        output, ended = walk(grammar, seed, most=120, name=tokens)
        if not ended:
            continue
        splitter = ReasoningSplitter(thoughts is Thoughts.ARE_OPEN) if thoughts is not Thoughts.NONE else None
        parser = AnswerParser(splitter, FORMS[form].parser(None))
        news = parser.push(text_of(output, tokens), last=True)
        assert not news.content and parser.calls
        found += 1
        arguments: dict[int, str] = {}
        for call in news.calls:
            assert call.name is None or call.name in PARTS
            arguments[call.number] = arguments.get(call.number, "") + call.arguments
        for text in arguments.values():
            assert isinstance(json.loads(text), dict)
    assert found or thoughts is not Thoughts.NONE
