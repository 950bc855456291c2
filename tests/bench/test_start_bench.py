"""`samebits bench start`: a server with empty caches, and again. No figure of a machine is asserted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from samebits.bench.start import CACHES, Started, run, table_rows
from samebits.cli import main
from samebits.config import ModelConfig

MOMENT = datetime(2026, 3, 29, 12, 0, 0, tzinfo=UTC)


def line(seconds: float, message: str, logger: str = "samebits.server") -> str:
    """Of a server's log."""
    time = (MOMENT + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "level": "debug", "logger": logger, "message": message})


LOG = "\n".join(
    [
        "a warning of a library",
        line(2.5, "loading weights: 0 of 8"),
        line(3.0, "loading weights: 3 of 8"),
        line(4.0, "compiling kernels: 0 of 30"),
        line(10.0, "compiling kernels: done in 6.0 s"),
        line(10.0, "proving kernels: 0 of 79"),
        line(11.0, "told: 7 of 9", "samebits.engine"),
        line(15.0, "compiling kernels: 0 of 9"),
        line(39.0, "ready on http://x"),
    ]
)


def test_the_caches_are_empty_once_and_filled_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    seen: list[bool] = []

    def start(environment: dict[str, str]) -> Started:
        folders = [Path(environment[name]) for name in CACHES]
        seen.append(any(folder.exists() for folder in folders))
        assert "PYTHONDONTWRITEBYTECODE" not in environment  # or there is a cache that nothing fills
        for folder in folders:
            folder.mkdir(exist_ok=True)
        return Started(MOMENT.timestamp(), 40.0, LOG)

    output = tmp_path / "start.json"
    run(start, ModelConfig(), 2, output, lambda line: None)
    result = json.loads(output.read_text())
    assert seen == [False, True, True]
    assert [row["caches"] for row in result["starts"]] == ["empty", "filled", "filled"]
    stages = "before any stage 2.5, loading weights 1.5, compiling kernels 31.0, proving kernels 5.0"
    assert table_rows(result)[1] == ("empty", "40.0", stages)


def test_a_server_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "start.json"
    # The torch profile compiles nothing, so that empty caches cost this test nothing.
    arguments = ["--model", "tiny", "--load-format", "dummy", "--numerics", "torch", "--kv-pages", "8"]
    assert main(["bench", "start", *arguments, "--repeats", "1", "--output", str(output)]) == 0
    assert [row["seconds"] > 0 for row in json.loads(output.read_text())["starts"]] == [True, True]
    assert "every figure is in" in capsys.readouterr().out
    assert main(["bench", "start", "--model", "no/such/model", "--output", str(output)]) == 2
