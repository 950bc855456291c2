"""Thoughts, words and tool calls are found in a text whatever pieces it comes in."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samebits.text.answer import AnswerParser
from samebits.text.blocks import AnswerBlocks, Block, Change
from samebits.text.reasoning import ReasoningSplitter, opens_thoughts
from samebits.text.tool_calls import HermesParser

Parsed = tuple[str, str, list[tuple[str | None, str]], int]

PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<", "<to", "</tool", "ol_call>"),
        *('{"name": "f", "arguments": {', '{"name":"g","arguments":{}}', '"a": "x"', '"</tool_call>"'),
        *("}", "}}", '"', "\\", "\n", "\n\n", " ", "words", '{"name": 1}', '"arguments": "{}"', "é🙂"),
    ]
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)
CALL = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": [1, {"x": "}"}]}}\n</tool_call>'
)


def parse(pieces: list[str], inside: bool = False, most_calls: int | None = None) -> Parsed:
    parser = AnswerParser(ReasoningSplitter(inside), HermesParser(most_calls))
    reasoning = content = ""
    calls: dict[int, tuple[str | None, str]] = {}
    for number, piece in enumerate(pieces):
        news = parser.push(piece, last=number == len(pieces) - 1)
        reasoning += news.reasoning
        content += news.content
        for call in news.calls:
            name, arguments = calls.get(call.number, (None, ""))
            assert (name is None) == (call.name is not None), "a call's name comes once, and first"
            calls[call.number] = (name or call.name, arguments + call.arguments)
    return reasoning, content, list(calls.values()), parser.calls


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 200), max_size=8), inside=st.booleans())
def test_pieces_do_not_matter(text: str, cuts: list[int], inside: bool) -> None:
    whole = parse([text], inside)
    assert parse([*text, ""], inside) == whole
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert parse([text[start:end] for start, end in pairwise(borders)], inside) == whole


def blocks_of(pieces: list[str], inside: bool = False) -> list[Block]:
    """The blocks of a text, whose events must tell of them one after the other."""
    parser, blocks = AnswerParser(ReasoningSplitter(inside), HermesParser()), AnswerBlocks()
    texts: list[str] = []
    opened = closed = 0
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        for event in blocks.push(parser.push(piece, last), last):
            assert event.block.index == len(texts) - (event.change is not Change.OPENED)
            if event.change is Change.OPENED:
                assert opened == closed
                opened += 1
                texts.append("")
            elif event.change is Change.GREW:
                assert event.text
                texts[-1] += event.text
            else:
                closed += 1
    assert opened == closed == len(blocks.blocks)
    assert texts == [block.text for block in blocks.blocks]
    return blocks.blocks


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 200), max_size=8), inside=st.booleans())
def test_pieces_do_not_matter_to_blocks(text: str, cuts: list[int], inside: bool) -> None:
    whole = blocks_of([text], inside)
    assert blocks_of([*text, ""], inside) == whole
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert blocks_of([text[start:end] for start, end in pairwise(borders)], inside) == whole


def test_blocks_keep_the_order_of_the_text() -> None:
    found = blocks_of([f"<think>hm</think>first {CALL} second{CALL.replace('weather', 'b')}"])
    assert [(block.kind, block.name or block.text) for block in found] == [
        ("reasoning", "hm"),
        ("text", "first"),
        ("call", "weather"),
        ("text", " second"),
        ("call", "b"),
    ]
    assert blocks_of([""]) == []


@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet="ab <>/\n{}", max_size=30))
def test_a_text_without_tags_is_words(text: str) -> None:
    assert parse([text]) == ("", text, [], 0)


@settings(max_examples=50, deadline=None)
@given(
    name=st.text(min_size=1, max_size=8),
    arguments=st.dictionaries(st.text(max_size=4), st.text(max_size=6), max_size=3),
)
def test_arguments_come_back_as_json(name: str, arguments: dict[str, str]) -> None:
    call = json.dumps({"name": name, "arguments": arguments})
    _, content, [(found, text)], count = parse([f"<tool_call>{call}</tool_call>"])
    assert (content, found, json.loads(text), count) == ("", name, arguments, 1)


def test_arguments_are_shown_before_the_call_ends() -> None:
    parser = HermesParser()
    early = parser.push(CALL[: CALL.index("Zürich")])
    assert [(call.name, call.arguments) for call in early.parts] == [("weather", ""), (None, '{"city": "')]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (CALL, "", [("weather", '{"city": "Zürich", "days": [1, {"x": "}"}]}')]),
        (
            f"Let me see.\n{CALL}\n",
            "Let me see.",
            [("weather", '{"city": "Zürich", "days": [1, {"x": "}"}]}')],
        ),
        (CALL.replace("weather", "a") + "\n" + CALL.replace("weather", "b"), "", ["a", "b"]),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": {"t": "</tool_call>"}}</tool_call>', "", ["f"]),
        ('<tool_call>{"name": "f", "arguments": {"a": [1</tool_call> done', " done", [("f", '{"a": [1')]),
        ('<tool_call>{"name": "f", "arguments": {"a": "cut', "", [("f", '{"a": "cut')]),
        ('<tool_call>{"name": "f", "arguments": null}', "", [("f", "{}")]),
        ("<tool_call>nothing</tool_call> else", "<tool_call>nothing</tool_call> else", []),
        ("<tool_call>nothing", "<tool_call>nothing", []),
        ("a <tool_ca", "a <tool_ca", []),
    ],
)
def test_calls(text: str, content: str, calls: list[tuple[str, str] | str]) -> None:
    _, words, found, count = parse([text])
    assert words == content
    assert count == len(calls) == len(found)
    for (name, arguments), expected in zip(found, calls, strict=True):
        assert expected in (name, (name, arguments))


def test_calls_beyond_the_most_are_dropped() -> None:
    both = CALL.replace("weather", "a") + CALL.replace("weather", "b")
    assert [name for name, _ in parse([both], most_calls=1)[2]] == ["a"]
    assert parse([both], most_calls=1)[3] == 1


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nyes", "hm", "yes"),
        ("\n<think>hm</think>yes", "hm", "yes"),
        ("<think>\n\n</think>\n\nyes", "", "yes"),
        ("<think>never ends\n", "never ends", ""),
        ("yes <think>no</think>", "", "yes <think>no</think>"),
        ("<thin", "", "<thin"),
        ("<think>a</think>b</think>", "a", "b</think>"),
    ],
)
def test_thoughts(text: str, reasoning: str, content: str) -> None:
    assert parse([text])[:2] == (reasoning, content)


def test_thoughts_that_the_prompt_has_opened() -> None:
    assert opens_thoughts("<|im_start|>assistant\n<think>\n")
    assert not opens_thoughts("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert parse(["hm</think>yes"], inside=True)[:2] == ("hm", "yes")
    assert parse(["hm</think>yes"])[:2] == ("", "hm</think>yes")


def test_a_call_inside_thoughts_is_a_thought() -> None:
    assert parse([f"<think>{CALL}</think>yes"]) == (CALL, "yes", [], 0)
