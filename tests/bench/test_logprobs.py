"""`samebits bench logprobs`: on a CPU activations are float32, so what is left of the error is small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from samebits.bench.logprobs import errors
from samebits.cli import main


def test_errors_of_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    output = tmp_path / "result.json"
    flags = ["--device", "cpu", "--lengths", "3", "40", "--kv-memory-mib", "64", "--output", str(output)]
    assert main(["bench", "logprobs", *flags]) == 0
    ours, theirs = json.loads(output.read_text())["absolute error against transformers in float64"].values()
    assert ours["most"] < 1e-3 < theirs["most"]
    assert "transformers in bfloat16" in capsys.readouterr().out


def test_tokens_one_place_off_are_seen() -> None:
    exact = torch.tensor([-1.0, -2.0, -4.0], dtype=torch.float64)
    assert errors(exact, exact)["most"] == 0
    assert errors(exact.roll(1), exact)["mean"] == 2.0


def test_dummy_weights_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "logprobs", "--model", "tiny", "--load-format", "dummy"]) != 0
    assert "transformers" in capsys.readouterr().err


def test_prompts_without_a_token_to_score_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "logprobs", "--lengths", "1", "1"]) == 2
    assert "--lengths" in capsys.readouterr().err
