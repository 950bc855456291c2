"""Calls in Llama 3's format are found in a text whatever pieces it comes in."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samebits.text.tool_calls_llama import LlamaParser
from samebits.text.tool_formats import HERMES, LLAMA, tool_format

Parsed = tuple[str, list[tuple[str, str]], int]
CALL = '{"name": "weather", "parameters": {"city": "Zürich", "days": [1, {"x": "}"}]}}'
ARGUMENTS = '{"city": "Zürich", "days": [1, {"x": "}"}]}'
PIECES = st.sampled_from(
    [
        *("<|python_tag|>", "<|python", "_tag|>", "<", ";", " ", "\n", "words", "é🙂"),
        *(
            '{"name": "f", "parameters": {',
            '{"name":"g","arguments":{}}',
            '{"type": "function", "name": "h", ',
        ),
        *(
            '"a": "x"',
            "}",
            "}}",
            '"',
            "\\",
            '{"name": 1}',
            '"parameters": {}',
            '{"parameters": {}, "name": "k"}',
        ),
    ]
)


def parse(pieces: list[str], most_calls: int | None = None) -> Parsed:
    parser = LlamaParser(most_calls)
    content = ""
    calls: dict[int, tuple[str, str]] = {}
    for number, piece in enumerate(pieces):
        news = [parser.push(piece)]
        if number == len(pieces) - 1:
            news.append(parser.finish())
        for delta in news:
            for call in delta.parts:
                if isinstance(call, str):
                    content += call
                    continue
                if call.number not in calls:
                    assert call.name is not None, "a call's name comes first"
                    calls[call.number] = (call.name, "")
                else:
                    assert call.name is None, "and once"
                name, arguments = calls[call.number]
                calls[call.number] = (name, arguments + call.arguments)
    return content, list(calls.values()), parser.calls


@settings(max_examples=200, deadline=None)
@given(text=st.lists(PIECES, max_size=12).map("".join), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_pieces_do_not_matter(text: str, cuts: list[int]) -> None:
    whole = parse([text])
    assert parse([*text, ""]) == whole
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert parse([text[start:end] for start, end in pairwise(borders)]) == whole
    assert whole[2] == len(whole[1])


@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet='ab <>/\n;"', max_size=30))
def test_a_text_without_objects_is_words(text: str) -> None:
    assert parse([text]) == (text, [], 0)


@settings(max_examples=50, deadline=None)
@given(
    name=st.text(min_size=1, max_size=8),
    arguments=st.dictionaries(st.text(max_size=4), st.text(max_size=6), max_size=3),
)
def test_arguments_come_back_as_json(name: str, arguments: dict[str, str]) -> None:
    content, [(found, text)], count = parse([json.dumps({"name": name, "parameters": arguments})])
    assert (content, found, json.loads(text), count) == ("", name, arguments, 1)


def test_arguments_are_shown_before_the_call_ends() -> None:
    early = LlamaParser().push(CALL[: CALL.index("Zürich")])
    assert [(call.name, call.arguments) for call in early.parts if not isinstance(call, str)] == [
        ("weather", ""),
        (None, '{"city": "'),
    ]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (CALL, "", [("weather", ARGUMENTS)]),
        (f"\n<|python_tag|>{CALL}", "", [("weather", ARGUMENTS)]),
        (f"Let me see. <|python_tag|>{CALL}", "Let me see. ", [("weather", ARGUMENTS)]),
        (f"{CALL}; {CALL}\n", "", [("weather", ARGUMENTS), ("weather", ARGUMENTS)]),
        (f"{CALL} and more", "and more", [("weather", ARGUMENTS)]),
        (f"Words first: {CALL}", f"Words first: {CALL}", []),
        ('{"type": "function", "name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
        ('{"parameters": {"a": 1}, "name": "f"}', "", [("f", '{"a": 1}')]),
        ('{"name": "f", "arguments": {"a": 1}}', "", [("f", '{"a": 1}')]),
        ('{"name": "f", "parameters": {"a": 1}, "more": {}}', "", [("f", '{"a": 1}')]),
        ('{"name": "f", "parameters": null}', "", [("f", "{}")]),
        ('{"name": "f", "parameters": {"a": "cut', "", [("f", '{"a": "cut')]),
        ('{"name": "Bob", "age": 5} ', '{"name": "Bob", "age": 5} ', []),
        ('{"name": "Bob"', '{"name": "Bob"', []),
        (r'{"parameters": {"a": "\ud83d\ude00"}, "name": "f"}', "", [("f", '{"a": "😀"}')]),
        (
            r'{"parameters": {"a": "\ud83d"}, "name": "f"}',
            r'{"parameters": {"a": "\ud83d"}, "name": "f"}',
            [],
        ),
        (r'{"name": "\ud83d", "parameters": {}}', r'{"name": "\ud83d", "parameters": {}}', []),
        (r'{"name": "f", "parameters": {"a": "\ud83d"}}', "", [("f", r'{"a": "\ud83d"}')]),
        ("a <|python_ta", "a <|python_ta", []),
        (f"{CALL} <|python_ta", "<|python_ta", [("weather", ARGUMENTS)]),
        (
            '{"a": "<|python_tag|>"} <|python_tag|>' + CALL,
            '{"a": "<|python_tag|>"} ',
            [("weather", ARGUMENTS)],
        ),
        ("  ", "  ", []),
        ("", "", []),
    ],
)
def test_calls(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parse([text]) == (content, calls, len(calls))


def test_calls_beyond_the_most_are_dropped() -> None:
    content, calls, count = parse([f"{CALL}; {CALL.replace('weather', 'b')}"], most_calls=1)
    assert (content, calls, count) == ("", [("weather", ARGUMENTS)], 1)


def test_the_format_follows_the_template() -> None:
    llama = 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}'
    assert tool_format("auto", "inside <tool_call></tool_call>") is HERMES
    assert tool_format("auto", llama) is LLAMA
    assert tool_format("auto", "{{ messages }}") is None
    assert tool_format("llama3_json", "inside <tool_call>") is LLAMA
    assert tool_format("qwen25", "") is HERMES
