"""From what a request asks of its output to a grammar in the library's own language.

A grammar is text: a JSON object with a list of parts, each a schema or a grammar in Lark. The same request always
makes the same text, and the text alone decides the masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import is_lark_syntax

from samebits.errors import RequestError
from samebits.grammar.schema import check_values, checked_schema

LARGEST_SCHEMA = 1 << 20
LARGEST_GRAMMAR = 1 << 16
"""characters of what is no schema"""
NUMBERED = re.compile(r"\\(?:(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|.)", re.DOTALL)
"""an escape in GBNF: a character's number, or another"""
LARGEST_CODE = 0x10FFFF
SURROGATES = range(0xD800, 0xE000)
FIRST_UNRESERVED = 0x80
"""a character below may mean something in a grammar"""
REFUSED_ATTRIBUTES = ("max_tokens", "stop", "temperature")
"""attributes of a rule that the library leaves to the engine, or that would take tokens back"""
UNFORCED = '\n%llguidance {"no_forcing": true}'
"""Stands behind every grammar in Lark of more than one lexeme. The library writes down what a grammar forces before it
computes a mask, and where a greedy lexeme takes all that the next one could begin with, as in `/a+/ /a+/`, that has no
end. The last such line decides."""
ONE_LEXEME = re.compile(r"start: (?:/(?:[^/\\\n]|\\.)+/|CHOICE\nCHOICE: [^\n]*)")
"""An expression alone, or a choice. Nothing comes behind it, so what it forces ends; and by what is forced,
vocabularies that lack bytes are kept from beginnings that they cannot end."""
LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)*/')
"""a string or an expression in Lark"""
TOKENS = re.compile(r'(?:\#|//)[^\n]*|<[^<>\s]+>|"(?:[^"\\\n]|\\.)*"|/(?:[^/\\]|\\.)+/|(%json\s*)', re.DOTALL)
"""what begins a schema in Lark, and what may only look as if it held one: comments, names of tokens, strings,
expressions"""
RULE_ATTRIBUTES = re.compile(
    rf'(?:^|%lark\s*\{{)[ \t]*[?!]*[\w-]+[ \t]*\[((?:{LITERAL.pattern}|[^\]"/\n])*)\]', re.MULTILINE
)
"""the head of a rule, with its attributes, whose values may hold brackets"""


@dataclass(frozen=True)
class Part:
    """One schema, expression or grammar, and the request's field that it came from."""

    field: str
    text: str
    """the part as JSON: `{"json_schema": ...}` or `{"lark_grammar": ...}`"""


@dataclass(frozen=True)
class Grammar:
    """What an output must match."""

    text: str
    field: str
    """the request's field that asked for it"""
    parts: tuple[Part, ...] = ()
    """what it is composed of, each to be judged by itself for a better error"""


def grammar_of(part: Part) -> Grammar:
    """The grammar of an output that is this part and nothing else."""
    return Grammar(_listed([part.text]), part.field)


def compose(top: str, parts: Mapping[str, Part], field: str) -> Grammar:
    """The grammar in Lark `top`, in which `@name` stands for the part of that name."""
    texts = [_dumps({"lark_grammar": unforced(top)})]
    for name, part in parts.items():
        texts.append(f'{{"name":{json.dumps(name)},' + part.text[1:])
    return Grammar(_listed(texts), field, tuple(parts.values()))


def schema_part(schema: object, field: str) -> Part:
    """JSON that is valid against `schema`: an object, or its text."""
    if isinstance(schema, str):
        schema = _loads(schema, field)
    part = _part({"json_schema": checked_schema(schema, field)}, field)
    _check_size(part.text, field, LARGEST_SCHEMA)
    return part


def object_part(field: str) -> Part:
    """Any JSON object."""
    return schema_part({"type": "object"}, field)


def regex_part(expression: object, field: str) -> Part:
    """A text that the whole of `expression` matches."""
    if not isinstance(expression, str):
        raise RequestError(f"{field} must be a regular expression: a string", field, "invalid_type")
    _check_size(expression, field)
    try:
        made = json.loads(llguidance.LLMatcher.grammar_from_regex(expression))
    except ValueError as error:  # a lone surrogate, which is in no text
        raise RequestError(f"{field}: {_first_line(error)}", field, "invalid_value") from error
    return _part({"lark_grammar": unforced(made["grammars"][0]["lark_grammar"])}, field)


def choice_part(choices: object, field: str) -> Part:
    """One of several texts."""
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise RequestError(f"{field} must be a list of texts, none of them empty", field, "invalid_type")
    if not choices:
        raise RequestError(f"{field} must offer at least one text", field)
    # One lexeme: the parser would follow each alternative of a rule by itself.
    lark = "start: CHOICE\nCHOICE: " + " | ".join(literal(choice) for choice in choices)
    _check_size(lark, field)
    return _part({"lark_grammar": unforced(lark)}, field)


def text_part(grammar: object, field: str) -> Part:
    """A grammar in Lark, or in GBNF (the EBNF of llama.cpp and of XGrammar)."""
    if not isinstance(grammar, str):
        raise RequestError(f"{field} must be a grammar: a string", field, "invalid_type")
    _check_size(grammar, field)
    try:
        lark = llguidance.grammar_from("ebnf", _with_characters(grammar))
    except ValueError as error:
        raise RequestError(f"{field}: {_first_line(error)}", field, "invalid_value") from error
    return _part({"lark_grammar": _checked_lark(lark, field)}, field)


def _with_characters(grammar: str) -> str:
    """A grammar in GBNF with characters in place of their numbers: the library's converter drops leading zeros, and
    what follows a number would become a part of it. Raises ValueError for a number that is no character's."""
    if is_lark_syntax(grammar):
        return grammar
    return NUMBERED.sub(_character, grammar)


def _character(escape: re.Match[str]) -> str:
    if escape[1] is None:
        return escape[0]
    code = int(escape[1][1:], 16)
    if code > LARGEST_CODE or code in SURROGATES:
        raise ValueError(f"{escape[0]} is no character")
    return f"\\x{code:02x}" if code < FIRST_UNRESERVED else chr(code)


def native_grammar(text: object, field: str) -> Grammar:
    """A grammar in the library's own language, as responses report it. Its parts are checked like any other."""
    _check_size(str(text), field, LARGEST_SCHEMA)
    value = _loads(text, field) if isinstance(text, str) else None
    check_values(value, field)
    entries = value.get("grammars") if isinstance(value, dict) else None
    if (
        not isinstance(value, dict)
        or set(value) != {"grammars"}
        or not isinstance(entries, list)
        or not entries
    ):
        raise RequestError(f'{field} must be like {{"grammars": [{{"lark_grammar": ...}}]}}, as text', field)
    texts = []
    for entry in entries:
        if not isinstance(entry, dict) or not set(entry) <= {"name", "json_schema", "lark_grammar"}:
            raise RequestError(f"{field}: a grammar has a name and a json_schema or lark_grammar", field)
        if "json_schema" in entry:
            entry = {**entry, "json_schema": checked_schema(entry["json_schema"], field)}
        if isinstance(entry.get("lark_grammar"), str):
            entry = {**entry, "lark_grammar": _checked_lark(entry["lark_grammar"], field)}
        texts.append(_dumps(entry))
    return Grammar(_listed(texts), field)


def unforced(lark: str) -> str:
    """`lark` with `UNFORCED` behind it, once, where it may have more than one lexeme."""
    return lark if lark.endswith(UNFORCED) or ONE_LEXEME.fullmatch(lark) else lark + UNFORCED


def literal(text: str) -> str:
    """`text` as a literal in Lark, which holds no DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _part(entry: dict[str, Any], field: str) -> Part:
    return Part(field, _dumps(entry))


def _check_size(text: str, field: str, most: int = LARGEST_GRAMMAR) -> None:
    if len(text) > most:
        raise RequestError(f"{field} is longer than {most} characters", field, "unsupported_value")


def _listed(texts: Sequence[str]) -> str:
    return f'{{"grammars":[{",".join(texts)}]}}'


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _loads(text: str, field: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{field} is not valid JSON: {error}", field, "invalid_value") from error


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _checked_lark(lark: str, field: str) -> str:
    """`lark`, with our layout in its schemas. Refuses what the library would read and this engine would not do."""
    for header in RULE_ATTRIBUTES.finditer(lark):
        attributes = LITERAL.sub("", header.group(1))
        for name in REFUSED_ATTRIBUTES:
            if re.search(rf"\b{name}\s*=", attributes):
                message = f"{field}: the attribute {name!r} of a rule is not supported"
                raise RequestError(message, field, "unsupported_value")
    for found in re.finditer(r"%json\s*(?=[{t f])", lark):
        try:
            schema, _ = json.JSONDecoder().raw_decode(lark, found.end())
        except (ValueError, RecursionError):
            continue  # the library says where
        checked_schema(schema, field)
    return unforced(_laid_out(lark, field))


def _laid_out(lark: str, field: str) -> str:
    """`lark` with the options that are ours in every schema of it."""
    pieces: list[str] = []
    place = done = 0
    while found := TOKENS.search(lark, place):
        place = found.end()
        if found[1] is None:
            continue
        try:
            schema, end = json.JSONDecoder().raw_decode(lark, place)
        except (ValueError, RecursionError):
            break  # the library says where
        if isinstance(schema, dict):
            pieces += (lark[done:place], _dumps(checked_schema(schema, field)))
            done = place = end
    return "".join(pieces) + lark[done:]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
