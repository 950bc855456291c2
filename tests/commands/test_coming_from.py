"""docs/coming-from.md: every flag of ours that it names exists, and every foreign flag that is understood is there."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from samebits.cli import build_parser
from samebits.commands.foreign import FLAGS
from samebits.config import CONFIG_VARIABLE, ENVIRONMENT_PREFIX, EngineConfig, ModelConfig, ServerConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "coming-from.md"
ROW = re.compile(r"^\| (?P<theirs>.*?) \| (?P<ours>.*) \|$", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]+")


def flags_in(text: str) -> set[str]:
    """The flags in the code of a text."""
    return {flag for code in CODE.findall(text) for flag in FLAG.findall(code)}


def understood() -> set[str]:
    """Every flag that `serve` takes."""
    for action in build_parser()._actions:
        if isinstance(action.choices, dict):
            return set(action.choices["serve"]._option_string_actions)
    raise AssertionError


def all_flags(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag of every command."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= all_flags(child)
    return found


def test_other_documents_name_flags_that_exist() -> None:
    known = all_flags(build_parser())
    for name in ("command-line", "operations", "guarantees"):
        text = (DOCUMENT.parent / f"{name}.md").read_text()
        ours = "\n".join(line for line in text.splitlines() if "python tests/" not in line)
        assert sorted(flags_in(ours) - known) == [], name
    assert flags_in("with `--plots` on") - known


def faults(text: str) -> list[str]:
    """What the document says and is not so."""
    rows = [(row["theirs"], row["ours"]) for row in ROW.finditer(text)]
    theirs = {flag for left, _ in rows for flag in flags_in(left) if "python -m" not in left}
    ours = {flag for left, right in rows for flag in flags_in(right) if "python -m" not in left}
    foreign = {name for flag in FLAGS for name in flag.names}
    known = understood()
    found = [
        f"{flag} is none of our own" for flag in sorted((ours - known) | (ours & foreign - {"--node-rank"}))
    ]
    found += [f"{flag} is not understood" for flag in sorted(theirs - known)]
    found += [f"{flag} is not told of" for flag in sorted(foreign - theirs)]
    settings = {
        name for cls in (ModelConfig, EngineConfig, ServerConfig) for name in cls.__dataclass_fields__
    }
    variables = {ENVIRONMENT_PREFIX + name.upper() for name in settings} | {CONFIG_VARIABLE}
    named = set(re.findall(rf"{ENVIRONMENT_PREFIX}[A-Z_]+", text))
    return found + [f"{name} is no variable of ours" for name in sorted(named - variables)]


def test_the_document_is_true() -> None:
    text = DOCUMENT.read_text()
    assert len(ROW.findall(text)) > 30
    assert faults(text) == []


def test_planted_faults_are_found() -> None:
    text = DOCUMENT.read_text()
    assert faults(text.replace("`--step-tokens` |", "`--step-size` |"))
    assert faults(text.replace("`--page-size`", "`--page-sizes`"))
    assert faults(text.replace("`--stream-interval`", "a flag"))
    assert faults(text.replace("SAMEBITS_MAX_RUNNING", "SAMEBITS_MAXIMUM"))
