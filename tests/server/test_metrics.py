"""/metrics: what it counts, and that the documents and the dashboard know it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FAULT_TOKEN, write_checkpoint
from live_server import LiveServer, running, wait_for
from prometheus_client.parser import text_string_to_metric_families

import samebits
from samebits.engine.histogram import Histogram
from samebits.generation.metrics import RequestMetrics
from samebits.server.metrics import metric_names

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, ...], float]


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[LiveServer]:
    with running(write_checkpoint(tmp_path, delay=0.002), max_body_mib=1) as live:
        yield live


def scrape(live: LiveServer) -> Samples:
    """Values by name and label values, in the order of the labels' names."""
    response = live.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name.removeprefix("samebits_"), *dict(sorted(sample.labels.items())).values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def ask(live: LiveServer, tokens: int, **more: Any) -> None:
    body = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
    live.post("/generate", body | more)


def test_what_is_counted(fresh: LiveServer) -> None:
    before = scrape(fresh)
    assert before["ready",] == 1
    assert before["info", "fake-fingerprint", "fake", "exact", samebits.__version__] == 1
    ask(fresh, 10)
    ask(fresh, 5, stream=True)
    ask(fresh, 3, input_ids=[[5], [6]])
    ask(fresh, 3, input_ids=[FAULT_TOKEN])
    ask(fresh, -3)
    with fresh.post("/generate", {"input_ids": [5], "stream": True}, stream=True) as stream:
        wait_for(lambda: scrape(fresh)["requests_running",] == 1)
        assert scrape(fresh)["kv_usage_ratio",] == 0.01
        stream.close()
    wait_for(lambda: scrape(fresh).get(("requests_total", "left")) == 1)
    after = scrape(fresh)
    assert after["requests_total", "length"] == 4
    assert after["requests_total", "error"] == 1
    assert after["http_requests_total", "POST", "/generate", "200"] == 4
    assert after["http_requests_total", "POST", "/generate", "400"] == 1
    assert after["http_requests_total", "POST", "/generate", "500"] == 1
    assert after["request_seconds_count",] == 4
    assert after["time_to_first_token_seconds_count",] == 5
    assert after["inter_token_latency_seconds_count",] >= 9 + 4 + 2 + 2
    assert after["inter_token_latency_seconds_sum",] > 17 * 0.002
    assert after["generated_tokens_total",] >= 10 + 5 + 3 + 3
    assert after["requests_running",] == 0
    for name in ("request_seconds", "time_to_first_token_seconds", "inter_token_latency_seconds"):
        buckets = [value for key, value in after.items() if key[0] == f"{name}_bucket"]
        assert buckets == sorted(buckets)
        assert buckets[-1] == after[f"{name}_count",]


def test_a_histogram_counts_like_a_slow_one() -> None:
    values = [0.0, 0.1, 0.1000001, 0.5, 2.0, 3.0, 1e9]
    histogram = Histogram((0.1, 0.5, 2.0))
    for value in values:
        histogram.add(value)
    histogram.add(0.3, times=2)
    expected = [sum(value <= bound for value in [*values, 0.3, 0.3]) for bound in (0.1, 0.5, 2.0, 1e99)]
    assert [sum(histogram.counts[: i + 1]) for i in range(4)] == expected
    assert histogram.total == sum(values) + 0.6


def test_a_turn_of_several_tokens_counts_each() -> None:
    metrics = RequestMetrics()
    watch = metrics.begin()
    watch.see(3, "")
    watch.see(0, "")
    watch.see(4, "stop")
    watch.end()
    assert sum(metrics.first_token.counts) == 1
    assert sum(metrics.between_tokens.counts) == 2 + 4
    assert metrics.ended == {"stop": 1}


def exposed(live: LiveServer) -> set[str]:
    """Names as Prometheus stores them, a histogram's once."""
    families = text_string_to_metric_families(live.get("/metrics").text)
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def test_the_names_are_those_exposed(server: LiveServer) -> None:
    assert exposed(server) == set(metric_names())


def test_the_table_of_metrics_is_whole() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(samebits_[a-z_]+)` \|", text, re.MULTILINE)
    assert table == metric_names()


def queries(value: Any) -> Iterator[str]:
    """Every PromQL expression in a dashboard."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("expr", "query", "definition") and isinstance(inner, str):
                yield inner
            else:
                yield from queries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from queries(inner)


def unknown_metrics(dashboard: Any) -> set[str]:
    known = set(metric_names())
    used = {name for query in queries(dashboard) for name in re.findall(r"samebits_[a-z_]+", query)}
    assert used
    return {
        name for name in used if name not in known and re.sub("_(bucket|sum|count)$", "", name) not in known
    }


def test_the_dashboard_asks_for_what_there_is() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "samebits.json").read_text(encoding="utf-8"))
    assert unknown_metrics(dashboard) == set()
    planted = {"panels": [{"targets": [{"expr": "rate(samebits_step_total[1m])"}]}]}
    assert unknown_metrics(planted) == {"samebits_step_total"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 10
