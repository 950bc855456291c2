"""`samebits bench start`: a server with empty caches, and again. No figure of a machine is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samebits.bench.start import CACHES, Started, run, table_rows
from samebits.cli import main
from samebits.config import ModelConfig


def test_the_caches_are_empty_once_and_filled_after(tmp_path: Path) -> None:
    seen: list[bool] = []

    def start(environment: dict[str, str]) -> Started:
        folders = [Path(environment[name]) for name in CACHES]
        seen.append(any(folder.exists() for folder in folders))
        for folder in folders:
            folder.mkdir(exist_ok=True)
        return Started(
            1.5, "12:00 INFO samebits.server: compiling kernels: done in 31.4 s\nready on http://x"
        )

    output = tmp_path / "start.json"
    run(start, ModelConfig(), 2, output, lambda line: None)
    result = json.loads(output.read_text())
    assert seen == [False, True, True]
    assert [row["caches"] for row in result["starts"]] == ["empty", "filled", "filled"]
    assert table_rows(result)[1] == ("empty", "1.5", "compiling kernels 31.4")


def test_a_server_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "start.json"
    # The torch profile compiles nothing, so that empty caches cost this test nothing.
    arguments = ["--model", "tiny", "--load-format", "dummy", "--numerics", "torch", "--kv-pages", "8"]
    assert main(["bench", "start", *arguments, "--repeats", "1", "--output", str(output)]) == 0
    assert [row["seconds"] > 0 for row in json.loads(output.read_text())["starts"]] == [True, True]
    assert "every figure is in" in capsys.readouterr().out
    assert main(["bench", "start", "--model", "no/such/model", "--output", str(output)]) == 2
