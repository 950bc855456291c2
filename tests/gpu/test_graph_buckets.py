"""Which decode steps are captured follows the settings alone."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from samebits.config import EngineConfig
from samebits.engine.device.build import graph_buckets


def largest(**sizes: int) -> int:
    return max(graph_buckets(EngineConfig(**sizes)), default=0)


def test_no_captured_step_is_larger_than_a_step_can_be() -> None:
    assert largest(max_running=256, step_tokens=8192) == 256
    assert largest(max_running=100, step_tokens=8192) == 128
    assert largest(max_running=256, step_tokens=64) == 64
    assert largest(max_running=256, step_tokens=48) == 64, "48 rows are padded to 64"
    assert largest(max_running=256, step_tokens=8192, cuda_graph_max_bs=30) == 32
    assert graph_buckets(EngineConfig(max_running=256, step_tokens=48, cuda_graph_max_bs=0)) == []
    assert list(graph_buckets(EngineConfig(max_running=3, step_tokens=512))) == [1, 2, 4]
