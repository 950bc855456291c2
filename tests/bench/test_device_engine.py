"""Requests that decode together for a benchmark: all of them run, or the benchmark says why not."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from samebits.bench.decode import EVERYBODY_AT_ONCE, PROMPT_TOKENS
from samebits.bench.device_engine import BenchEngine
from samebits.bench.null_model import null_engine
from samebits.bench.parallel import BATCHES, CONTEXT_TOKENS, Course, _process, contender
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError
from samebits.models.load import read_model_files
from samebits.schedule.foresight import Foresight

PAGE_TOKENS = 64
LARGEST = max(BATCHES)


def bench_engine(assumed: int, requests: int = LARGEST) -> BenchEngine:
    """Room for a benchmark's contexts of so many requests."""
    engine = null_engine(LARGEST, 2048, CONTEXT_TOKENS // PAGE_TOKENS * requests, PAGE_TOKENS, "overlapped")
    engine.scheduler.foresight = Foresight(assumed) if assumed else None
    return BenchEngine(engine, cast(Any, SimpleNamespace()), 0.0)


def test_all_requests_of_a_batch_run_together() -> None:
    opened = bench_engine(EVERYBODY_AT_ONCE)
    running = 0
    for batch in BATCHES:
        opened.decode_together(batch - running, PROMPT_TOKENS)
        running = batch
        assert len(opened.engine.scheduler.running) == batch and not opened.engine.scheduler.waiting_count
    assert not opened.engine.scheduler.preemptions


@pytest.mark.parametrize(
    ("assumed", "requests"),
    [(EngineConfig.assumed_answer_tokens, LARGEST), (EVERYBODY_AT_ONCE, LARGEST // 2)],
    ids=["foretold to be long", "no room"],
)
def test_requests_that_would_wait_for_ever_are_refused(assumed: int, requests: int) -> None:
    """The inverse: an engine that foretells how long answers become, and one whose memory holds half of them."""
    opened = bench_engine(assumed, requests)
    opened.decode_together(32, PROMPT_TOKENS)
    with pytest.raises(ConfigError, match=re.escape(f"of {LARGEST} requests would never run")):
        opened.decode_together(LARGEST - 32, PROMPT_TOKENS)


def test_engines_over_several_gpus_admit_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EngineConfig] = []
    monkeypatch.setattr("samebits.bench.parallel.EngineProcess", lambda model, engine: asked.append(engine))
    model = ModelConfig(model="llama-3.1-70b-shaped", load_format="dummy")
    course = Course(BATCHES, 1, 1, ())
    _process(contender("exact", 2), model, EngineConfig(), read_model_files(model).spec, course)
    assert [one.assumed_answer_tokens for one in asked] == [EVERYBODY_AT_ONCE]
    assert asked[0].max_running == LARGEST
