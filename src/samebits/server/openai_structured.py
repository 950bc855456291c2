"""What an OpenAI request asks of its output: OpenAI's `response_format`, and vLLM's and SGLang's fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from samebits.errors import RequestError
from samebits.grammar.language import Part, choice_part, object_part, regex_part, schema_part, text_part
from samebits.server.fields import check_name
from samebits.server.openai_schema import CommonFields

READERS: dict[str, Callable[[Any, str], Part]] = {
    "guided_json": schema_part,
    "guided_regex": regex_part,
    "guided_choice": choice_part,
    "guided_grammar": text_part,
    "json_schema": schema_part,
    "regex": regex_part,
    "ebnf": text_part,
}
"""by field of the body"""
STRUCTURED_READERS: dict[str, Callable[[Any, str], Part]] = {
    "json": schema_part,
    "regex": regex_part,
    "choice": choice_part,
    "grammar": text_part,
}
"""by field of `structured_outputs`"""


def output_part(
    response_format: dict[str, Any] | None, common: CommonFields | None, names: Mapping[str, str]
) -> Part | None:
    """What the output must look like; None: anything. Raises `RequestError` naming the field, in the route's words
    (`names`)."""
    parts = [] if response_format is None else _format_parts(response_format, names)
    if common is not None:
        for name, read in READERS.items():
            value = getattr(common, name)
            if value not in (None, ""):
                parts.append(read(value, name))
        if common.structured_outputs is not None:
            for name, read in STRUCTURED_READERS.items():
                value = getattr(common.structured_outputs, name)
                if value not in (None, ""):
                    parts.append(read(value, f"structured_outputs.{name}"))
            if common.structured_outputs.json_object:
                parts.append(object_part("structured_outputs.json_object"))
    if len(parts) > 1:
        asked = " and ".join(part.field for part in parts)
        raise RequestError(f"an output has one form: give one of {asked}", parts[1].field)
    return parts[0] if parts else None


def _format_parts(given: dict[str, Any], names: Mapping[str, str]) -> list[Part]:
    field = names.get("response_format", "response_format")
    kind = given.get("type")
    _check_keys(given, ("type", "json_schema") if kind == "json_schema" else ("type",), field)
    if kind == "text":
        return []
    if kind == "json_object":
        return [object_part(field)]
    if kind != "json_schema":
        raise RequestError(
            f"{field}.type must be text, json_object or json_schema, got {kind!r}",
            f"{field}.type",
            "unsupported_value",
        )
    schema_field = names.get("response_format_schema", f"{field}.json_schema.schema")
    named = given.get("json_schema")
    if not isinstance(named, dict) or "schema" not in named:
        message = f"{field} of type json_schema must hold a schema"
        raise RequestError(message, schema_field, "invalid_type")
    _check_keys(named, ("name", "description", "schema", "strict"), schema_field.rpartition(".")[0])
    return [schema_part(named["schema"], schema_field)]


def _check_keys(given: Mapping[str, Any], known: Sequence[str], path: str) -> None:
    """Refuse a field that is not known: it would ask for a form that the output has not."""
    for name, value in given.items():
        if value is not None:
            check_name(name, known, path)
