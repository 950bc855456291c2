"""Outputs of a schema's grammar are valid against the schema, and what cannot be enforced is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import llguidance
import pytest
from grammar_walk import accepts, compiler, text_of, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from samebits.errors import RequestError
from samebits.grammar.compiler import GrammarError
from samebits.grammar.language import Grammar, grammar_of, schema_part
from samebits.grammar.schema import ANNOTATIONS, KEYWORDS, OPEN_OPTIONS

NAMES = st.text("abcé漢", min_size=1, max_size=3)
DECIMALS = st.floats(-(10**9), 10**9, allow_nan=False).map(lambda value: round(value, 6))
LITERALS = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=6) | DECIMALS


def bounds(low: str, high: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """No, one or two bounds, in order."""
    pairs = st.tuples(values, values).map(sorted).map(lambda pair: {low: pair[0], high: pair[1]})
    return st.just({}) | values.map(lambda value: {low: value}) | pairs


STRINGS = st.builds(
    lambda limits: {"type": "string", **limits}, bounds("minLength", "maxLength", st.integers(0, 8))
)
INTEGERS = st.builds(
    lambda limits: {"type": "integer", **limits}, bounds("minimum", "maximum", st.integers(-5000, 5000))
)
NUMBERS = st.builds(
    lambda limits: {"type": "number", **limits},
    bounds("minimum", "maximum", st.floats(-1000, 1000, allow_nan=False).map(lambda x: round(x, 3))),
)
LEAVES = st.one_of(
    STRINGS,
    INTEGERS,
    NUMBERS,
    st.just({"type": ["string", "null"]}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({}),
    st.lists(LITERALS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    LITERALS.map(lambda value: {"const": value}),
    st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "email"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    st.sampled_from(["^[a-c]{2}$", "x[0-9]+", "^(é|漢)+"]).map(lambda rx: {"type": "string", "pattern": rx}),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    @st.composite
    def made(draw: st.DrawFn) -> dict[str, Any]:
        properties = draw(st.dictionaries(NAMES, inner, max_size=4))
        required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
        schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        extra = draw(st.sampled_from([None, False, True]) | inner)
        return schema if extra is None else schema | {"additionalProperties": extra}

    return made()


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        st.builds(
            lambda items, limits: {"type": "array", "items": items, **limits},
            inner,
            bounds("minItems", "maxItems", st.integers(0, 3)),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.lists(inner, min_size=1, max_size=2).map(
            lambda entries: {"type": "array", "prefixItems": entries}
        ),
    ),
    max_leaves=5,
)


def grammar(schema: Any) -> Grammar:
    return grammar_of(schema_part(schema, "schema"))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(SCHEMAS, st.integers(0, 1000))
def test_outputs_are_valid(schema: dict[str, Any], seed: int) -> None:
    made = grammar(schema)
    try:
        compiler("tiny").compile(made.text)
    except GrammarError as error:
        assert "nsatisfiable" in str(error), error  # such as a required property with minimum above maximum
        return
    tokens, ended = walk(made, seed, most=150, name="tiny")
    if ended:
        jsonschema.validate(json.loads(text_of(tokens, "tiny")), schema, jsonschema.Draft202012Validator)


def test_most_walks_end() -> None:
    """The property above is about something."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}, "b": {}}}
    ended = [walk(grammar(schema), seed, most=150, name="tiny")[1] for seed in range(20)]
    assert sum(ended) > 8


def test_without_a_grammar_outputs_are_not_valid() -> None:
    """The inverse: what makes them valid is the mask."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    texts = [text_of(walk(grammar({}), seed, most=60)[0]) for seed in range(10)]
    valid = 0
    for text in texts:
        try:
            jsonschema.validate(json.loads(text), schema)
            valid += 1
        except (ValueError, jsonschema.ValidationError):
            pass
    assert valid < 5


UNENFORCED = [
    "$anchor",
    "$dynamicRef",
    "additionalItems",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "discriminator",
    "else",
    "if",
    "maxContains",
    "not",
    "nullable",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "x-guidance",
    "x-order",
]


@pytest.mark.parametrize("keyword", UNENFORCED)
@pytest.mark.parametrize("path", ["$", "$.properties.a", "$.$defs.b.anyOf[1].items"])
def test_keywords_that_cannot_be_enforced_are_refused(keyword: str, path: str) -> None:
    bad: dict[str, Any] = {"type": "object", keyword: True}
    schema = {
        "$": bad,
        "$.properties.a": {"properties": {"a": bad}},
        "$.$defs.b.anyOf[1].items": {"$defs": {"b": {"anyOf": [{}, {"items": bad}]}}},
    }[path]
    with pytest.raises(RequestError) as caught:
        schema_part(schema, "response_format")
    assert caught.value.field == "response_format"
    assert repr(keyword) in str(caught.value) and f" {path} " in str(caught.value)


def test_the_library_alone_would_ignore_some() -> None:
    """The inverse: why the table of keywords is ours."""
    text = json.dumps({"grammars": [{"json_schema": {"type": "string", "nullable": True, "x-order": 1}}]})
    assert llguidance.LLMatcher.validate_grammar_with_warnings(text) == (False, [])


def test_every_keyword_that_is_let_through_is_known_to_the_library() -> None:
    integer: dict[str, Any] = {"type": "integer"}
    groups: list[tuple[str, Any]] = [
        ("anyOf oneOf allOf prefixItems", [integer]),
        ("items additionalProperties", integer),
        ("properties patternProperties", {"^a$": integer}),
        ("minimum exclusiveMinimum minItems minLength minProperties", 1),
        ("maximum exclusiveMaximum maxItems maxLength maxProperties", 9),
        ("const", 3),
        ("enum", [3]),
        ("multipleOf", 3),
        ("type", "integer"),
        ("required", ["a"]),
        ("pattern", "a"),
        ("format", "date"),
        ("$ref", "#/$defs/a"),
    ]
    values = {keyword: value for keywords, value in groups for keyword in keywords.split()}
    free = accepted({})
    for keyword in KEYWORDS - ANNOTATIONS - {"$defs", "definitions"}:
        schema = {keyword: values[keyword], "$defs": {"a": integer}}
        assert accepted(schema) < free, f"{keyword} changes nothing"
    for keyword in ANNOTATIONS - {"$schema"}:
        assert accepted({keyword: "a"}) == free


def accepted(schema: dict[str, Any]) -> set[str]:
    """Which of some values a schema lets through."""
    values = [
        "[]",
        '[""]',
        "[0,0,0,0,0,0,0,0,0,0]",
        "{}",
        '{"b": 1}',
        '{"a": "x", "b": ""}',
        '{"^a$": ""}',
        '""',
    ]
    values += [
        '"123456789X"',
        "-2",
        "1",
        "10",
        "4.5",
        "null",
        "3",
        '{"0":0,"1":1,"2":1,"3":1,"4":1,"5":1,"6":1,"7":1,"8":1,"9":1}',
    ]
    made = grammar(schema)
    return {value for value in values if accepts(made, value)}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"const": 2**53}, "2^53"),
        ({"enum": [1, {"a": [-(2**60)]}]}, "2^53"),
        ({"maximum": 10**20}, "2^53"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "draft-04"),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "items": {"prefixItems": [{}]}},
            "prefixItems",
        ),
        ({"items": [{}]}, "$.items"),
        ({"properties": {"a": 5}}, "$.properties.a"),
        ([], "object"),
        ("{", "valid JSON"),
        ('{"const": NaN}', "NaN"),
        (r'{"properties": {"\ud800": {"unknown": 1}}}', "surrogate"),
        ({"enum": ["", {"\udfff": 1}]}, "surrogate"),
        *(('{"const": ' + "[" * depth + "]" * depth + "}", "nested") for depth in (100, 700)),
        ('{"const": ' + "[" * 1_000, "recursion"),
        ('{"const": 1e400}', "too large"),
        ('{"title": [-1e400]}', "too large"),
        ({"const": float("nan")}, "too large"),
    ],
)
def test_what_the_library_would_get_wrong_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(RequestError, match=re.escape(words)):
        schema_part(schema, "schema")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "zip"},
        {"type": "string", "pattern": "(?=a)"},
        {"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]},
        {"$ref": "#/$defs/none"},
        {"$ref": "https://example.org/schema"},
        {"type": "thing"},
        {"enum": []},
        False,
        {"type": "integer", "minimum": 5, "maximum": 3},
    ],
)
def test_what_the_library_refuses(schema: Any) -> None:
    with pytest.raises(GrammarError):
        compiler().compile(grammar(schema).text)


def test_properties_come_in_the_schemas_order() -> None:
    schema = {"type": "object", "properties": {"b": {"const": 1}, "a": {"const": 2}}, "required": ["a", "b"]}
    assert accepts(grammar(schema), '{"b": 1, "a": 2}')
    assert not accepts(grammar(schema), '{"a": 2, "b": 1}')
    assert grammar(schema).text == grammar(json.dumps(schema)).text


OPEN_OBJECTS: list[tuple[dict[str, Any], str]] = [
    ({"properties": {"a": {"type": "integer"}}}, '{"\\u0061": "x"}'),
    ({"properties": {"\n": {"type": "integer"}}, "additionalProperties": {"type": "string"}}, '{"\\u000A": "x"}'),
    ({"patternProperties": {"^a": {"type": "integer"}}}, '{"\\u0061b": "x"}'),
    (
        {"properties": {"a\x1f": {"type": "integer"}}, "patternProperties": {"^a": {}}, "additionalProperties": False},
        '{"a\\u001F": "x"}',
    ),
    ({"required": ["a"], "minProperties": 2}, '{"a": 1, "\\u0061": 2}'),
]  # fmt: skip


@pytest.mark.parametrize(("keywords", "text"), OPEN_OBJECTS)
@pytest.mark.parametrize("outer", ["$", "items", "anyOf"])
def test_no_name_passes_for_another(keywords: dict[str, Any], text: str, outer: str) -> None:
    schema: dict[str, Any] = {"type": "object", **keywords}
    match outer:
        case "items":
            schema, text = {"type": "array", "items": schema}, f"[{text}]"
        case "anyOf":
            schema = {"anyOf": [{"type": "null"}, schema]}
    assert not jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    made = grammar(schema)
    assert not accepts(made, text)
    library_alone = made.text.replace(json.dumps(OPEN_OPTIONS["json_allowed_escapes"])[1:-1], 'nrbtf\\\\\\"u')
    assert accepts(replace(made, text=library_alone), text)


def test_control_characters_are_written_where_no_name_can_pass_for_another() -> None:
    literal = {"const": "\x1b[0m"}
    closed = {"type": "object", "properties": {"a": literal}, "additionalProperties": False}
    for schema, text in ((literal, '"\\u001b[0m"'), (closed, '{"a": "\\u001b[0m"}')):
        assert accepts(grammar(schema), text)
    with pytest.raises(RequestError, match=re.escape("$.properties.a.const holds a control character")):
        grammar({"type": "object", "properties": {"a": literal}})
    assert accepts(grammar({"type": "object", "properties": {"a": {}}}), '{"a": "\\n\\t\\"\\\\"}')


def test_blank_space_is_bounded() -> None:
    made = grammar({"type": "object"})
    for text in ("{}", '{"a": 1}', '{\n  "a": 1\n}', '{"a" :1 }', '{\r\n"a":1}'):
        assert accepts(made, text), text
    for text in (" {}", "{}\n", '{"a":  1}', '{\n\n"a":1}', "{\n" + " " * 41 + "}"):
        assert not accepts(made, text), text
