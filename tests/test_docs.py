"""What README, docs and help texts tell a reader to type exists."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from samebits.cli import build_parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^(?: {4}|\t)(.*)$", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def code_of(text: str) -> Iterator[str]:
    """Every piece of code in a Markdown text: lines of blocks, and inline spans."""
    for block in FENCED.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    rest = FENCED.sub("", text)
    yield from INDENTED.findall(rest)
    yield from INLINE.findall(rest)


def commands_of(text: str, name: str) -> list[list[str]]:
    """The arguments of each `name ...` command in a Markdown text. A comment, a redirection, a pipe or an ellipsis
    ends it."""
    found = []
    for line in code_of(text):
        words = re.split(r"\s#\s|\s*[|<>&…]|\s\.\.\.", line.strip().removeprefix("$ ").strip())[0]
        words = re.sub(r"^(?:python3? -m |[A-Z_]+=\S+ )+(?=samebits\b)", "", words)
        if words.split(" ")[0] == name and words != name:
            found.append(shlex.split(words)[1:])
    return found


def parses(arguments: list[str]) -> bool:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            build_parser().parse_args(arguments)
        except SystemExit as leave:
            return leave.code == 0
    return True


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def dead_commands(text: str) -> list[str]:
    """What a document quotes and a reader cannot type."""
    dead = [f"samebits {shlex.join(found)}" for found in commands_of(text, "samebits") if not parses(found)]
    for found in commands_of(text, "make"):
        goals = [word for word in found if "=" not in word and not word.startswith("-")]
        dead += [f"make {goal}" for goal in goals if goal not in targets()]
    return dead


def test_there_are_documents() -> None:
    assert all(path.exists() for path in DOCUMENTS)
    assert any(commands_of(path.read_text(), "samebits") for path in DOCUMENTS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_quote_no_dead_command(path: Path) -> None:
    assert dead_commands(path.read_text()) == []


def epilogs(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield parser.epilog or ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from epilogs(child)


def test_help_examples_parse() -> None:
    lines = [
        line
        for text in epilogs(build_parser())
        for line in text.splitlines()
        if line.startswith("  samebits")
    ]
    assert len(lines) > 15
    commands = [re.split(r"\s{2,}|\s[<|]", line.strip())[0] for line in lines]
    assert [line for line in commands if not parses(shlex.split(line)[1:])] == []


def missing_tests(text: str) -> list[str]:
    """Tests that a document names and nobody can run."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    sources = {path: (ROOT / path).read_text() if (ROOT / path).exists() else "" for path, _ in named}
    return [
        f"{path} {name}"
        for path, name in named
        if not sources[path] or (name and f"def {name}(" not in sources[path])
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_tests_that_exist(path: Path) -> None:
    assert missing_tests(path.read_text()) == []


def test_a_planted_name_of_a_test_is_found() -> None:
    here = "`tests/test_docs.py::test_a_planted_name_of_a_test_is_found`"
    assert missing_tests(f"{here} and `tests/test_docs.py`") == []
    assert len(missing_tests("`tests/test_docs.py::test_nothing` and `tests/test_nothing.py`")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "`samebits serv`",
        "```\nsamebits verify --trials 3\n```",
        "    samebits bench everything",
        "```bash\n$ samebits serve \\\n  --prot 8000\n```",
        "`make everything`",
        "`python -m samebits destroy`",
    ],
)
def test_a_planted_dead_command_is_found(text: str) -> None:
    assert len(dead_commands(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "`samebits serve [MODEL]`",
        "`SAMEBITS_PORT=8000 samebits serve`",
        "    samebits generate < prompt.txt",
        "```\nsamebits verify single   # one prompt\nmake test ARGS=tests/verify\n```",
        "`samebits` is a package; `samebits …` works",
        "`samebits --help`",
    ],
)
def test_a_living_command_is_not(text: str) -> None:
    assert dead_commands(text) == []
