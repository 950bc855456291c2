"""Logprobs of the bundled model on a GPU against transformers in float64 on the same weights: no worse than
transformers in bfloat16, which rounds where we do."""

from __future__ import annotations

from pathlib import Path

import pytest

from samebits.bench import logprobs
from samebits.config import EngineConfig, ModelConfig

pytestmark = pytest.mark.gpu

MEAN_BOUND = 1.25
"""Our mean error over that of transformers in bfloat16."""


def test_no_worse_than_transformers_in_bfloat16(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    engine = EngineConfig(step_tokens=256, max_running=8, kv_memory_mib=512)
    result = logprobs.run(
        ModelConfig(device="cuda"), engine, (3, 130, 700), tmp_path / "result.json", lambda line: None
    )
    ours, theirs = result["absolute error against transformers in float64"].values()
    assert ours["mean"] <= MEAN_BOUND * theirs["mean"]
    assert ours["most"] <= 2 * theirs["most"] + 1e-3
