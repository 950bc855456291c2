"""The reference lists every field that the code knows, and only those, under its own kind."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from samebits.server import schema

TEXT = (Path(__file__).parents[2] / "docs" / "native-api.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    start = TEXT.index(f"### Fields: {title}\n")
    return re.split(r"\n##+ ", TEXT[start + 1 :])[0]


def names(struct: type[msgspec.Struct]) -> set[str]:
    return set(struct.__struct_fields__)


KINDS = {
    "supported": names(schema.NativeRequest) | names(schema.NativeSampling),
    "inert": set(schema.INERT_FIELDS) | set(schema.INERT_SAMPLING_FIELDS),
    "refused": set(schema.REFUSED_FIELDS) | set(schema.REFUSED_SAMPLING_FIELDS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_documented_under_its_kind(kind: str) -> None:
    documented = set(re.findall(r"`([a-z_0-9]+)`", section(kind)))
    assert KINDS[kind] <= documented, sorted(KINDS[kind] - documented)
    others = set().union(*(fields for other, fields in KINDS.items() if other != kind)) - {"sampling_params"}
    assert not documented & (others - KINDS[kind]), sorted(documented & others - KINDS[kind])
