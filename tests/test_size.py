"""No source file outgrows a reader's head."""

from __future__ import annotations

from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"
MOST_LINES = 450


def test_no_source_file_is_too_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES.rglob("*.py")}
    assert len(lengths) > 10
    too_long = {
        str(path.relative_to(SOURCES)): count for path, count in lengths.items() if count > MOST_LINES
    }
    assert not too_long, f"files of more than {MOST_LINES} lines, each perhaps two in one room: {too_long}"
