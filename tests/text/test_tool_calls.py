"""The parsers look at each character a fixed number of times, however long a call stays open."""

from __future__ import annotations

from types import ModuleType

import pytest
from counted_text import Counted, CountedPattern

from samebits.text import tool_calls, tool_calls_llama
from samebits.text.tool_calls import CLOSE, OPEN, HermesParser, ToolParser
from samebits.text.tool_calls_llama import TAG, LlamaParser

LENGTH = 12_000
HERMES_TEXTS = {
    "open": OPEN + "words " * (LENGTH // 6),
    "open name": OPEN + '{"name": "' + "{" * LENGTH,
    "open arguments": OPEN + '{"name": "f", "arguments": {"a": "' + "x<{" * (LENGTH // 3),
    "bad name": OPEN + '{"name": "\\q", "arguments": {' + "{" * LENGTH,
    "blank": "a" + " \n" * (LENGTH // 2),
    "blank block": OPEN + " " * LENGTH,
    "calls": (OPEN + '{"name": "f", "arguments": {}}' + CLOSE) * (LENGTH // 54),
    "blocks": (OPEN + CLOSE) * (LENGTH // 23),
    "openings": OPEN * (LENGTH // 11),
}
LLAMA_TEXTS = {
    "open": '{"a": ' + "words " * (LENGTH // 6),
    "open name": '{"name": "' + "{" * LENGTH,
    "open arguments": '{"name": "f", "parameters": {"a": "' + "x<{" * (LENGTH // 3),
    "open rest": '{"name": "f", "parameters": {}, ' + "[" * LENGTH,
    "bad name": '{"name": "\\q", "parameters": {' + "{" * LENGTH,
    "late name": '{"parameters": {"a": "' + "x<{" * (LENGTH // 3) + '"}, "name": "f"}',
    "blank": " \n" * (LENGTH // 2),
    "blank behind a call": '{"name": "f", "parameters": {}}' + "; " * (LENGTH // 2),
    "blank in a header": '{"type": ' + " " * LENGTH,
    "words": "a<|python_" * (LENGTH // 10),
    "calls": '{"name": "f", "parameters": {}};' * (LENGTH // 32),
    "tagged calls": (TAG + '{"name": "f", "parameters": {}}') * (LENGTH // 45),
    "objects": (TAG + '{"a": 1}') * (LENGTH // 22),
    "objects in objects": (TAG + '{"\\"') * (LENGTH // 19) + '"}}',
    "tags": TAG * (LENGTH // 14),
}
CASES = [(tool_calls, HermesParser, name, text) for name, text in HERMES_TEXTS.items()]
CASES += [(tool_calls_llama, LlamaParser, name, text) for name, text in LLAMA_TEXTS.items()]


@pytest.mark.parametrize("size", [1, 5, LENGTH * 2])
@pytest.mark.parametrize(
    ("module", "make_parser", "text"),
    [case[:2] + case[3:] for case in CASES],
    ids=[f"{case[1].__name__}, {case[2]}" for case in CASES],
)
def test_work_grows_with_the_text_alone(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, make_parser: type[ToolParser], text: str, size: int
) -> None:
    monkeypatch.setattr(module, "HEADER", CountedPattern(module.HEADER))
    parser = make_parser()
    Counted.looked = 0
    for start in range(0, len(text), size):
        parser.push(Counted(text[start : start + size]))
    parser.finish()
    assert len(text) / 2 < Counted.looked < 100 * len(text)


def test_work_beyond_that_would_be_counted() -> None:
    """The inverse: a reader that looks at all that has come with each character."""
    Counted.looked, held = 0, Counted("")
    for character in HERMES_TEXTS["open"]:
        held = held + character
        held.find(CLOSE)
    assert Counted.looked > 1000 * LENGTH
