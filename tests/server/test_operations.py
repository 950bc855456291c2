"""What operators are told: the engine's own metrics where memory is short, and a warning where anybody may call."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_server import LiveServer, ending, free_port, launch

from samebits.config import ServerConfig
from samebits.server.lifecycle import _warn_if_open

PAGES = 6
"""of 64 tokens: room for one long request and a part of another"""


def values(live: LiveServer) -> dict[str, float]:
    """The metrics without labels, by name."""
    lines = [line.rpartition(" ") for line in live.get("/metrics").text.splitlines() if "{" not in line]
    return {
        name.removeprefix("samebits_"): float(value) for name, _, value in lines if not name.startswith("#")
    }


def ask(live: LiveServer, first: int) -> object:
    sampling = {"max_new_tokens": 200, "ignore_eos": True, "sampling_seed": first}
    return live.generate(input_ids=[first, *range(20, 90)], sampling_params=sampling, return_logprob=True)


def bits(answer: object) -> object:
    assert isinstance(answer, dict)
    return answer["output_ids"], answer["meta_info"]["output_token_logprobs"]


def test_the_engines_metrics_where_memory_is_short(tmp_path: Path) -> None:
    port = free_port()
    arguments = ["-m", "samebits", "serve", "--port", str(port), "--kv-pages", str(PAGES)]
    with ending(launch(arguments, port, tmp_path)) as live:
        live.wait_until_ready(400)
        start = values(live)
        assert start["kv_pages"] == PAGES
        assert (
            start["preemptions_total"] == start["generated_tokens_total"] == start["step_seconds_count"] == 0
        )
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda first: ask(live, first), (5, 6, 7)))
        crowded = values(live)
        assert crowded["preemptions_total"] > 0
        assert crowded["prompt_tokens_total"] > 3 * 71, "lost tokens are computed again, and counted"
        assert crowded["generated_tokens_total"] == 3 * 200
        assert 0 < crowded["step_seconds_count"] <= crowded["steps_total"]
        assert crowded["step_seconds_sum"] > 0
        assert crowded["time_to_first_token_seconds_count"] == 3
        assert crowded["inter_token_latency_seconds_count"] == 3 * 199
        assert crowded["kv_pages_used"] == crowded["kv_pages_cached"] <= PAGES
        assert crowded["kv_usage_ratio"] == crowded["kv_pages_used"] / PAGES
        alone = [ask(live, first) for first in (5, 6, 7)]
        assert [bits(answer) for answer in alone] == [bits(answer) for answer in together]
        cached = values(live)["prompt_tokens_cached_total"]
        ask(live, 7)
        assert values(live)["prompt_tokens_cached_total"] > cached
        assert values(live)["preemptions_total"] == crowded["preemptions_total"]


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "api_key": ("k",)}, False),
        ({"host": "10.0.0.7", "api_key_file": "keys"}, False),
    ],
)
def test_a_server_open_to_others_says_so(
    settings: dict[str, object], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="samebits.server"):
        _warn_if_open(ServerConfig(**settings))  # type: ignore[arg-type]
    assert bool(caplog.records) is warned
