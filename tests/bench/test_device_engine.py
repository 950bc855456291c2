"""Requests that decode together for a benchmark: all of them run, or the benchmark says why not."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from samebits.bench.decode import EVERYBODY_AT_ONCE, PROMPT_TOKENS, kv_mebibytes, most_tokens
from samebits.bench.device_engine import ABORT_STEPS, BenchEngine, median_of
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


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A runner's figures where there is no device to wait for."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return SimpleNamespace(busy_and_idle=lambda: (0.0, 0.0))


def test_steps_in_which_not_everybody_decodes_are_no_figure(no_device: Any) -> None:
    """Their time would be that of fewer requests, and of prompts that are computed again."""
    opened = bench_engine(EVERYBODY_AT_ONCE)
    opened.runner = no_device
    opened.decode_together(LARGEST, PROMPT_TOKENS)
    assert opened.timed_steps(2 * PAGE_TOKENS)["wall"] > 0
    with pytest.raises(ConfigError, match="--kv-memory-mib, --steps"):
        opened.timed_steps(CONTEXT_TOKENS - PROMPT_TOKENS)


@pytest.mark.parametrize(("batches", "steps"), [((12, 8, 1), 81), ((12, 11, 10, 9), 200), ((4,), 700)])
def test_there_is_room_for_all_steps_that_are_timed(
    batches: tuple[int, ...], steps: int, no_device: Any
) -> None:
    def measure(pages: int) -> None:
        opened = BenchEngine(
            null_engine(max(batches), 2048, pages, PAGE_TOKENS, "overlapped"), no_device, 0.0
        )
        opened.engine.scheduler.foresight = None
        opened.decode_together(max(batches), PROMPT_TOKENS)
        for batch in batches:
            opened.keep(batch)
            opened.timed_steps(steps - ABORT_STEPS)
            assert len(opened.engine.scheduler.running) == batch

    room = most_tokens(batches, steps, PAGE_TOKENS)
    measure(room // PAGE_TOKENS)
    with pytest.raises(ConfigError):
        measure(room // PAGE_TOKENS * 3 // 4)


def test_keys_and_values_take_the_room_of_their_type() -> None:
    spec = read_model_files(ModelConfig(model="qwen3-8b-shaped", load_format="dummy")).spec
    assert kv_mebibytes(spec, 256, 1216) == 256 * 1216 * 147_456 >> 20
    assert kv_mebibytes(replace(spec, dtype="float32"), 256, 1216) == 256 * 1216 * 147_456 >> 19


def test_median_of_an_even_number_of_rounds() -> None:
    assert median_of([{"wall": value} for value in (4.0, 1.0, 2.0, 3.0)], "wall") == 2.5


def test_engines_over_several_gpus_admit_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EngineConfig] = []
    monkeypatch.setattr("samebits.bench.parallel.EngineProcess", lambda model, engine: asked.append(engine))
    model = ModelConfig(model="llama-3.1-70b-shaped", load_format="dummy")
    course = Course(BATCHES, 1, 1, ())
    _process(contender("exact", 2), model, EngineConfig(), read_model_files(model).spec, course)
    assert [one.assumed_answer_tokens for one in asked] == [EVERYBODY_AT_ONCE]
    assert asked[0].max_running == LARGEST
    _process(
        contender("exact", 2),
        model,
        EngineConfig(),
        read_model_files(model).spec,
        Course(BATCHES, 3, 200, ()),
    )
    assert asked[1].kv_memory_mib > 2 * asked[0].kv_memory_mib
