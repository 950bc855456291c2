"""The reference of the OpenAI routes lists every field that the code knows, and no others, under its own kind."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from samebits.server import openai_schema as schema

TEXT = (Path(__file__).parents[2] / "docs" / "openai-api.md").read_text(encoding="utf-8")
BODIES: tuple[type[msgspec.Struct], ...] = (
    schema.SamplingFields,
    schema.CommonFields,
    schema.CompletionFields,
    schema.ChatFields,
    schema.TokenizeFields,
    schema.DetokenizeFields,
)
KINDS = {
    "supported": {name for body in BODIES for name in body.__struct_fields__},
    "inert": set(schema.INERT_FIELDS),
    "refused": set(schema.REFUSED_FIELDS)
    | set(schema.REFUSED_COMPLETION_FIELDS)
    | set(schema.REFUSED_CHAT_FIELDS),
}
CODE = re.compile(
    r'"((?:unknown|unsupported)_[a-z]+|invalid_type|invalid_value|context_length_exceeded|model_not_found)"'
)
STRUCTURED = {"json", "json_object", "regex", "choice", "grammar"}
MENTIONED = {
    "supported": {"include_obfuscation", "prompt_token_ids", "token_ids", "id", *STRUCTURED},
    "inert": set(),
    "refused": set(),
}
"""names in a section that are no fields of a body"""


def section(title: str) -> str:
    start = TEXT.index(f"### Fields: {title}\n")
    return re.split(r"\n##+ ", TEXT[start + 1 :])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_and_reference_are_equal(kind: str) -> None:
    documented = set(re.findall(r"`([a-z_0-9]+)`", section(kind))) - (MENTIONED[kind] - KINDS[kind])
    assert documented == KINDS[kind]


def test_no_field_is_of_two_kinds() -> None:
    names = list(KINDS)
    for index, kind in enumerate(names):
        for other in names[index + 1 :]:
            assert not KINDS[kind] & KINDS[other]


def test_every_code_is_documented() -> None:
    sources = Path(schema.__file__).parent.glob("*.py")
    used = {code for path in sources for code in CODE.findall(path.read_text())}
    assert len(used) >= 5
    assert {code for code in used if f"`{code}`" not in TEXT} == set()
