"""Reading a body's fields, the same on every route: a field that no table knows is an error that names it, an inert
field is dropped, a refused field is accepted only with a value that asks for nothing."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec

from samebits.errors import RequestError

Body = TypeVar("Body", bound=msgspec.Struct)


INERT_FIELDS = {
    "cache_salt": "the prefix cache cannot change a result",
    "data_parallel_rank": "one engine serves every request",
    "extra_key": "the prefix cache cannot change a result",
    "session_id": "a label",
}
"""Accepted on every route and without effect; the value says why that is harmless."""

REFUSED_FIELDS = {
    "bootstrap_host": "disaggregated prefill",
    "bootstrap_port": "disaggregated prefill",
    "bootstrap_room": "disaggregated prefill",
    "custom_logit_processor": "code in a request",
    "lora_path": "LoRA adapters",
    "return_hidden_states": "hidden states",
    "session_params": "sessions",
}
"""Refused on every route unless blank; the value names what is not offered."""

REFUSED_SAMPLING_FIELDS = {
    "custom_params": "code in a request",
    "stop_regex": "stop expressions",
    "structural_tag": "structural tags",
}
"""The same of the fields that say how tokens are drawn."""

LONGEST_NAME = 64
"""characters of an unknown field that are compared with known ones"""
CLOSE_ENOUGH = 0.8
"""likeness from which an unknown field is taken for a mistyped one"""
DEEPEST = 100
"""levels of lists and objects in a body: whatever reads or writes them later may go down by recursion"""


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body. NaN and Infinity are no JSON. Raises `RequestError`."""
    if not body.strip():
        raise RequestError("the body is empty: it must be a JSON object")
    try:
        value = decode_json(body)
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    return value


def decode_json(text: bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` saying why there is none."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from error
    # Few texts have so many brackets that they could be too deep: most are not walked through.
    if text.count(b"[") + text.count(b"{") > DEEPEST and _is_deep(value):
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        parts = [
            part for holder in level for part in (holder.values() if isinstance(holder, dict) else holder)
        ]
        level = [part for part in parts if isinstance(part, list | dict)]
        if not level:
            return False
    return True


def convert_object(
    value: Mapping[str, Any],
    kind: type[Body],
    path: str,
    inert: Mapping[str, str],
    refused: Mapping[str, str],
    others: Sequence[str] = (),
) -> Body:
    """Check an object's fields against the tables and `kind`. Raises `RequestError` naming the field. `others` are
    fields that belong elsewhere in the body."""
    kept = {}
    for name, content in value.items():
        if name in refused:
            if not _is_blank(content):
                message = f"{path}{name}: {refused[name]} are not offered"
                raise RequestError(message, path + name, "unsupported_parameter")
        elif name in kind.__struct_fields__:
            kept[name] = content
        elif name not in inert:
            message = f"unknown field {path}{name}{_guess(name, (*kind.__struct_fields__, *others), path)}"
            raise RequestError(message, path + name, "unknown_parameter")
    try:
        return msgspec.convert(kept, kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        name = path + where.rstrip("`").lstrip(".")
        message = f"{name}: {message[:1].lower()}{message[1:]}"
        raise RequestError(message, name or None, "invalid_type") from error


def check_name(name: str, known: Container[str], path: str) -> None:
    """Raise `RequestError` for a field of the object at `path` that is none of the `known` ones."""
    if name not in known:
        raise RequestError(f"unknown field {path}.{name}", f"{path}.{name}", "unknown_parameter")


def _guess(name: str, known: Sequence[str], path: str) -> str:
    """What a mistyped field may have been meant for, to be said after it."""
    near = get_close_matches(name[:LONGEST_NAME], known, 1, CLOSE_ENOUGH)
    return f"; is {path}{near[0]} meant?" if near else ""


def _is_blank(content: object) -> bool:
    """Whether a refused field asks for nothing: null, false, zero, or empty however deep."""
    if isinstance(content, list):
        return all(_is_blank(part) for part in content)
    return not content
