"""The reference of responses and messages lists every field that the code knows."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from samebits.server import anthropic_schema, openai_schema, responses_schema

TEXT = (Path(__file__).parents[2] / "docs" / "responses-and-messages.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    start = TEXT.index(f"### Fields of {title}\n")
    return re.split(r"\n##+ ", TEXT[start + 1 :])[0]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


def fields_of(module: object) -> set[str]:
    """Fields of every struct of a module."""
    kinds = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, msgspec.Struct)]
    return {name for kind in kinds for name in kind.__struct_fields__}


@pytest.mark.parametrize(
    ("title", "module", "inert", "refused"),
    [
        (
            "responses",
            responses_schema,
            set(responses_schema.INERT_RESPONSES_FIELDS) - set(openai_schema.INERT_FIELDS),
            set(responses_schema.REFUSED_RESPONSES_FIELDS),
        ),
        (
            "messages",
            anthropic_schema,
            set(anthropic_schema.INERT_MESSAGES_FIELDS),
            set(anthropic_schema.REFUSED_MESSAGES_FIELDS),
        ),
    ],
)
def test_the_reference_lists_the_fields(
    title: str, module: object, inert: set[str], refused: set[str]
) -> None:
    supported_text, inert_text, refused_text = re.split(r"\n\n(?:Inert|Refused)", section(title))
    assert names_in(supported_text) >= fields_of(module)
    assert names_in(inert_text) == inert
    assert names_in(refused_text) == refused
