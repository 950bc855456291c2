"""Which JSON schemas can be enforced whole.

The grammar library ignores keywords that it does not know, and approximates a few that it knows. What it would not
enforce is found here and refused by name, so that an answer which matches the grammar is valid against the schema.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from samebits.errors import RequestError

OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"( |\r?\n[ \t]{0,40})"}
"""How JSON is laid out: at most a space, or a new line and its indentation, wherever JSON allows blank space. Without
a bound a model could go on with blank space for ever."""
OPEN_OPTIONS = {**OPTIONS, "json_allowed_escapes": 'nrbtf\\"'}
"""The same where an object that has names of its own takes others, too: written with \\u, a name of its own would pass
for another, whose value may be anything. So nothing is written with \\u there."""
UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
"""characters that JSON holds as \\u alone, for the library"""
OPTIONS_KEY = "x-guidance"
"""where the library reads them in a schema"""

SCHEMAS = frozenset({"items", "additionalProperties"})
SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
COUNTS = frozenset({"minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"})
OTHERS = frozenset({"$ref", "const", "enum", "type", "required", "pattern", "format"})
ANNOTATIONS = frozenset(
    "$comment $schema contentEncoding contentMediaType default deprecated description examples readOnly title "
    "writeOnly".split()
)
"""Say nothing about what is valid."""
KEYWORDS = SCHEMAS | SCHEMA_LISTS | SCHEMA_MAPS | BOUNDS | COUNTS | OTHERS | ANNOTATIONS
NEWEST_DIALECT = "draft/2020-12/"
DIALECTS = ("draft-06/", "draft-07/", "draft/2019-09/", NEWEST_DIALECT)
"""drafts in which these keywords mean the same; the older ones lack `prefixItems`"""
LARGEST_INTEGER = (1 << 53) - 1
"""the library reads numbers as doubles"""
MOST_LEVELS = 60
DEEPEST = 100
"""levels of values in a schema: whatever reads or writes them may go down by recursion"""


@dataclass
class _Seen:
    """What a schema holds, as far as it has been read."""

    open_names: bool = False
    """an object that has names of its own and takes others, too"""
    unwritable: str = ""
    """where there is a text that needs \\u"""


def checked_schema(schema: object, field: str) -> dict[str, Any]:
    """`schema` with the layout that is ours. Raises `RequestError` naming the keyword that cannot be enforced."""
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    if not isinstance(schema, dict):
        raise RequestError(f"{field} must be a JSON schema: an object", field, "invalid_type")
    check_values(schema, field)
    own = dict(schema)
    given = own.pop(OPTIONS_KEY, OPTIONS)
    _check_dialect(own.get("$schema", NEWEST_DIALECT), field)
    seen = _Seen()
    _check(own, field, "$", 0, NEWEST_DIALECT in own.get("$schema", NEWEST_DIALECT), seen)
    if seen.open_names and seen.unwritable:
        message = (
            f"{field}: the text at {seen.unwritable} holds a control character, which can be enforced only where "
            "every object with properties has additionalProperties: false"
        )
        raise RequestError(message, field, "unsupported_value")
    options = OPEN_OPTIONS if seen.open_names else OPTIONS
    if given not in (OPTIONS, options):
        raise _unsupported(field, OPTIONS_KEY, "$")
    return {**own, OPTIONS_KEY: options}


def check_values(value: object, field: str) -> None:
    """Refuse JSON that was given as a text and that no body could hold: too deep, or with a string that is no
    Unicode or a number that no double is near, which neither an error nor the library could say again."""
    level = [value]
    for _ in range(DEEPEST):
        parts = [part for holder in level for part in _parts(holder)]
        if any(_is_broken(part) for part in parts):
            message = f"{field} holds a lone surrogate (\\ud800 to \\udfff), which no text has"
            raise RequestError(message, field, "invalid_value")
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            message = f"{field} holds a number that is too large, or none"
            raise RequestError(message, field, "invalid_value")
        level = [part for part in parts if isinstance(part, list | dict)]
        if not level:
            return
    raise RequestError(f"{field} is nested more than {DEEPEST} levels deep", field, "invalid_value")


def _parts(holder: object) -> list[Any]:
    if isinstance(holder, dict):
        return [*holder, *holder.values()]
    return holder if isinstance(holder, list) else []


def _is_broken(part: object) -> bool:
    if not isinstance(part, str):
        return False
    try:
        part.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check(schema: object, field: str, path: str, level: int, tuples: bool, seen: _Seen) -> None:
    """`tuples`: the dialect has `prefixItems`."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        message = f"{field}: the schema at {path} must be an object or a boolean"
        raise RequestError(message, field, "invalid_type")
    if level > MOST_LEVELS:
        raise RequestError(f"{field}: the schema is nested deeper than {MOST_LEVELS} levels", field)
    seen.open_names |= _takes_other_names(schema)
    for keyword, value in schema.items():
        if keyword not in KEYWORDS or (keyword == "prefixItems" and not tuples):
            raise _unsupported(field, keyword, path)
        where = f"{path}.{keyword}"
        if keyword in SCHEMAS:
            _check(value, field, where, level + 1, tuples, seen)
        elif keyword in SCHEMA_LISTS and isinstance(value, list):
            for index, entry in enumerate(value):
                _check(entry, field, f"{where}[{index}]", level + 1, tuples, seen)
        elif keyword in SCHEMA_MAPS and isinstance(value, dict):
            for name, entry in value.items():
                _check(entry, field, f"{where}.{name}", level + 1, tuples, seen)
        elif keyword in BOUNDS | COUNTS | {"const", "enum"}:
            _check_literals(value, field, where, seen)
    _check_property_count(schema, field, path)


def _takes_other_names(schema: dict[str, Any]) -> bool:
    """Whether an object of this schema may have names beside those that it names one by one."""
    patterns = schema.get("patternProperties")
    is_closed = schema.get("additionalProperties") is False and not patterns
    return bool(patterns or schema.get("properties") or schema.get("required")) and not is_closed


def _check_literals(value: object, field: str, where: str, seen: _Seen) -> None:
    """Refuse integers that a double cannot hold: the library would enforce another one."""
    if isinstance(value, bool):
        return
    if isinstance(value, str) and UNWRITABLE.search(value):
        seen.unwritable = where
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        message = f"{field}: the integer {value} at {where} is beyond 2^53 and cannot be enforced exactly"
        raise RequestError(message, field, "unsupported_value")
    if isinstance(value, list):
        for entry in value:
            _check_literals(entry, field, where, seen)
    if isinstance(value, dict):
        for entry in _parts(value):
            _check_literals(entry, field, where, seen)


def _check_dialect(dialect: object, field: str) -> None:
    if not isinstance(dialect, str) or not any(name in dialect for name in DIALECTS):
        message = f"{field}: the dialect {dialect!r} at $.$schema is not supported; leave it out"
        raise RequestError(message, field, "unsupported_value")


def _check_property_count(schema: dict[str, Any], field: str, path: str) -> None:
    """The grammar counts properties by their occurrences and cannot see that a free name comes twice."""
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    if not isinstance(least, int) or not isinstance(required, list):
        return  # the library says what is wrong
    if least > len(required) + 1:
        message = f"{field}: minProperties {least} at {path} cannot be enforced: one more than the required names can"
        raise RequestError(message, field, "unsupported_value")


def _unsupported(field: str, keyword: str, path: str) -> RequestError:
    message = f"{field}: the schema keyword {keyword!r} at {path} is not supported"
    return RequestError(message, field, "unsupported_value")
