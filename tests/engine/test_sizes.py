"""Sizes that the settings leave open follow the device; KV pages take what memory leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samebits.config import EngineConfig
from samebits.engine.sizes import DeviceMemory, check_sizes, filled_in, kv_page_count, multiprocessors_of
from samebits.errors import ConfigError
from samebits.numerics.gpu.buckets import bucket_of

GIB = 1 << 30
PAGE = 1 << 20
CARD = DeviceMemory(free=60 * GIB, total=80 * GIB)


def test_step_sizes_follow_the_device() -> None:
    on_cpu, on_gpu = (filled_in(EngineConfig(), multiprocessors) for multiprocessors in (0, 108))
    assert (on_cpu.step_tokens, on_cpu.max_running) == (512, 64)
    assert (on_gpu.step_tokens, on_gpu.max_running) == (8192, 256)
    given = EngineConfig(step_tokens=100, max_running=3)
    assert filled_in(given, 132) == given
    assert multiprocessors_of(torch.device("cpu")) == 0


def test_a_step_fills_the_multiprocessors_of_one_gpu() -> None:
    """66 tiles of 128 rows, of which 132 multiprocessors have the same number each, whatever power of two the columns
    are cut into. Shares of several ranks would be no whole tiles."""
    assert filled_in(EngineConfig(), 132).step_tokens == 8448
    assert [filled_in(EngineConfig(), 132, ranks).step_tokens for ranks in (2, 4, 8)] == [8192] * 3
    for multiprocessors in range(1, 320):
        step = filled_in(EngineConfig(), multiprocessors).step_tokens
        assert step == 8192 or (step // 128) % (multiprocessors // 2) == 0
        assert step == bucket_of(step), "no padding in a whole step"


def test_pages_take_what_the_weights_leave() -> None:
    """0.9 of 80 GiB less the 20 that are taken, and less one page for padding rows."""
    assert kv_page_count(EngineConfig(), PAGE, CARD) == 52 * 1024 - 1
    assert kv_page_count(EngineConfig(memory_fraction=0.5), PAGE, CARD) == 20 * 1024 - 1


def test_a_given_amount_goes_before_the_share() -> None:
    assert kv_page_count(EngineConfig(kv_pages=7), PAGE, CARD) == 7
    assert kv_page_count(EngineConfig(kv_memory_mib=64), PAGE, CARD) == 64
    assert kv_page_count(EngineConfig(), PAGE, None) == 1024


@pytest.mark.parametrize(
    "settings",
    [
        {"kv_pages": -1},
        {"kv_memory_mib": -1},
        {"step_tokens": -1},
        {"max_waiting": 0},
        {"assumed_answer_tokens": -1},
        {"page_tokens": 100},
        {"memory_fraction": 1.0},
    ],
)
def test_sizes_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    check_sizes(EngineConfig())
    with pytest.raises(ConfigError, match="--" + next(iter(settings)).replace("_", "-")):
        check_sizes(EngineConfig(**settings))


def test_too_little_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="--memory-fraction"):
        kv_page_count(EngineConfig(memory_fraction=0.2), PAGE, CARD)
    with pytest.raises(ConfigError, match="--kv-memory-mib"):
        kv_page_count(EngineConfig(kv_memory_mib=1), 2 * PAGE, None)


def test_too_little_says_who_holds_the_card() -> None:
    crowded = DeviceMemory(free=5 * GIB, total=80 * GIB, ours=16 * GIB)
    with pytest.raises(
        ConfigError, match="5120 MiB are free, this process holds 16384 MiB and others 60416 MiB"
    ):
        kv_page_count(EngineConfig(), PAGE, crowded)
    assert kv_page_count(EngineConfig(kv_memory_mib=64), PAGE, crowded) == 64
