"""Request bodies that a hostile or broken client could send: valid ones, changed."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
SAMPLING = {"temperature": 0.8, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "stop": ["zz"], "n": 1}
USER = {"role": "user", "content": "the same"}
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 1, "maximum": 9},
        "b": {"type": "array", "items": {"$ref": "#/$defs/b"}, "minItems": 1, "maxItems": 2},
        "c": {"type": "string", "pattern": "^[a-c]{1,3}$", "maxLength": 5},
        "d": {"anyOf": [{"enum": ["x", 1, None]}, {"const": True}]},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"b": {"type": "boolean"}},
}
STRICT = {"name": "f", "parameters": SCHEMA, "strict": True}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
VALID: list[tuple[str, dict[str, Any]]] = [
    (
        "/generate",
        {
            "text": "the same",
            "sampling_params": {"temperature": 0.8, "max_new_tokens": 4, "top_k": 5, "stop": ["zz"], "n": 2},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 2,
            "token_ids_logprob": [5, 6],
            "stream": False,
            "rid": "mine",
        },
    ),
    ("/generate", {"input_ids": [[5, 6], [7]], "sampling_params": [{"max_new_tokens": 2}] * 2}),
    (
        "/v1/completions",
        {
            "model": "default",
            "prompt": ["the", "same"],
            "max_tokens": 4,
            "echo": True,
            "logprobs": 2,
            "logit_bias": {"5": 1.5},
            "prompt_logprobs": 1,
            "return_token_ids": True,
            "stop_token_ids": [9],
            "stream": True,
            "stream_options": {"include_usage": True},
            **SAMPLING,
        },
    ),
    ("/v1/completions", {"prompt": [[5, 6], [7]], "max_tokens": 2, "frequency_penalty": 0.5}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "the"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "12"},
                USER,
            ],
            "max_completion_tokens": 4,
            "logprobs": True,
            "top_logprobs": 2,
            "chat_template_kwargs": {"enable_thinking": True},
            "documents": [{"a": "b"}],
            "metadata": {"a": "b"},
            "date": "2026-01-31",
            **SAMPLING,
        },
    ),
    (
        "/v1/chat/completions",
        {"messages": [USER], "max_tokens": 3, "tools": [TOOL], "tool_choice": "auto", "stream": True},
    ),
    (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "the"}]},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "12"},
            ],
            "instructions": "be brief",
            "max_output_tokens": 4,
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 1,
            "text": {"format": {"type": "text"}},
            "reasoning": {"effort": "low"},
            "stream": True,
        },
    ),
    (
        "/v1/messages",
        {
            "system": [{"type": "text", "text": "be brief"}],
            "messages": [
                {"role": "user", "content": "the"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": ""},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {}},
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "1"}]},
            ],
            "max_tokens": 4,
            "stop_sequences": ["zz"],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            "stream": True,
        },
    ),
    (
        "/generate",
        {"text": "a", "sampling_params": [{"max_new_tokens": 4, "regex": "[ab]{1,3}(c|d)?"}], "rid": ["own"]},
    ),
    ("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 4, "ebnf": 'root ::= "a" | "b"'}}),
    (
        "/v1/completions",
        {
            "prompt": "a",
            "max_tokens": 4,
            "structured_outputs": {"json": SCHEMA},
            "response_format": None,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [USER],
            "max_tokens": 6,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
            },
            "stream": True,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [USER],
            "max_tokens": 6,
            "tools": [{"type": "function", "function": STRICT}],
            "tool_choice": "required",
        },
    ),
    (
        "/v1/responses",
        {
            "input": "a",
            "max_output_tokens": 6,
            "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
        },
    ),
    (
        "/v1/messages",
        {
            "messages": [USER],
            "max_tokens": 6,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ),
    ("/v1/messages/count_tokens", {"messages": [USER], "tools": [{"name": "f", "input_schema": {}}]}),
    ("/tokenize", {"messages": [USER], "return_token_strs": True}),
    ("/detokenize", {"tokens": [5, 6], "skip_special_tokens": True}),
    ("/abort_request", {"rid": "nobody"}),
]
FORMATS = [
    {"$ref": "#"},
    {"$ref": "#/$defs/missing"},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "array", "minItems": 10**9},
    {"type": "string", "pattern": "(a{1000}){1000}"},
    {"type": "string", "pattern": "(?=a)b\\1"},
    {"type": "integer", "minimum": 5, "maximum": 1},
    {"enum": []},
    {"not": {}},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "string", "format": "uuid"},
    "root ::= root",
    "start: start",
    "([",
    "(a*)*" * 50,
    ".{1,100000}",
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    {"type": "grammar"},
]


class Raw(str):
    """Characters that stand in a body as they are."""


DEPTHS = (90, 450, 800, 950, 3000)
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        -0.0,
        1e308,
        -1e308,
        5e-324,
        2**31,
        2**53 + 1,
        2**63,
        2**64,
        -(2**63),
    ),
    *(Raw("1" + "0" * 400), Raw("-1e999"), Raw("1e400"), Raw("NaN"), Raw("Infinity"), Raw("01"), Raw("1.")),
    *(
        "",
        " ",
        "a",
        "\x00",
        "\ufeff",
        "é🙂",
        "null",
        "123",
        "-1",
        "x" * 5000,
        "<|eos|>",
        "<think>",
        "{{ 1/0 }}",
    ),
    *(Raw(r'"\ud800"'), Raw(r'"\udc00\ud800"'), Raw(r'"\u0000"'), Raw(r'"\x"'), Raw('"\t"'), Raw("'a'")),
    *(
        [],
        {},
        [[]],
        [None],
        [1],
        ["a"],
        [{}],
        {"a": 1},
        {"": None},
        {"type": "text"},
        {"type": []},
        {"type": {}},
    ),
    *([0] * 3000, ["a"] * 300, {str(i): i for i in range(300)}, [[1], "a", None, {}]),
    *(Raw("[" * depth + "]" * depth) for depth in DEPTHS),
    *(Raw('{"a":' * depth + "1" + "}" * depth) for depth in DEPTHS),
    Raw("[" * 3000),
    *FORMATS,
]


def text_of(value: Any) -> str:
    """`value` as JSON text, which need not be valid."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{text_of(key)}:{text_of(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def places_in(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the parts of a body are."""
    found = [place]
    if isinstance(value, dict):
        for key, part in value.items():
            found += places_in(part, (*place, key))
    elif isinstance(value, list):
        for index, part in enumerate(value[:8]):
            found += places_in(part, (*place, index))
    return found


def mutated(random: Random) -> tuple[str, bytes]:
    """(path, body), changed in one to three places, and now and then in its bytes."""
    path, valid = random.choice(VALID)
    body = json.loads(json.dumps(valid))
    if random.random() < 0.1:
        path = random.choice(VALID)[0]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        body = _changed(body, random)
    data = text_of(body).encode("utf-8", "surrogatepass")
    return path, _broken(data, random) if random.random() < 0.15 else data


def _odd(random: Random) -> Any:
    return deepcopy(random.choice(ODD))


def _changed(body: Any, random: Random) -> Any:
    place = random.choice(places_in(body))
    if not place:
        return _odd(random) if random.random() < 0.2 else _with_key(body, random)
    holder = body
    for step in place[:-1]:
        holder = holder[step]
    match random.randrange(6):
        case 0:
            del holder[place[-1]]
        case 1 if isinstance(holder[place[-1]], dict):
            holder[place[-1]] = _with_key(holder[place[-1]], random)
        case 2 if isinstance(holder, list):
            holder.insert(random.randrange(len(holder) + 1), _odd(random))
        case 3:
            source: Any = random.choice(VALID)[1]
            for step in random.choice(places_in(source)):
                source = source[step]
            holder[place[-1]] = json.loads(json.dumps(source))
        case _:
            holder[place[-1]] = _odd(random)
    return body


def _with_key(body: Any, random: Random) -> Any:
    """One more key: a new one, one of another body, or one that is there twice."""
    if not isinstance(body, dict):
        return _odd(random)
    if body and random.random() < 0.4:
        key = random.choice(list(body))
        return Raw(text_of(body)[:-1] + f",{text_of(key)}:{text_of(_odd(random))}" + "}")
    other: dict[str, Any] = random.choice(VALID)[1]
    more = ["colour", "", "\x00", "suffix", "guided_json", "response_format", "deadline_seconds", *other]
    return body | {random.choice(more): _odd(random)}


def _broken(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    match random.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + random.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88")) + data[at:]
        case 3:
            return b"\xef\xbb\xbf" + data
        case 4:
            return data + random.choice((b" ", b"}", b"\x00", data))
        case _:
            return data[:at] + data[at + random.randrange(20) :]
