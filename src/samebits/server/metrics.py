"""The server's metrics for Prometheus.

Counting happens in plain numbers, on the event loop and in the engine; only a scrape makes metrics of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import samebits
from samebits.engine.histogram import STEP_SECONDS, Histogram
from samebits.engine.messages import EngineFacts, EngineStatus
from samebits.generation.metrics import RequestMetrics

PREFIX = "samebits_"
NO_STATUS = EngineStatus(
    call=0,
    running=0,
    waiting=0,
    steps=0,
    kv_pages_total=0,
    kv_pages_used=0,
    prompt_tokens=0,
    generated_tokens=0,
    cached_tokens=0,
    preemptions=0,
)

GAUGES = {
    "ready": "1 while requests are taken",
    "requests_running": "samples in the engine's batch",
    "requests_waiting": "samples in the engine's queue",
    "http_requests_in_flight": "HTTP requests being answered",
    "kv_pages": "KV pages that there are",
    "kv_pages_used": "KV pages of running samples and of the prefix cache",
    "kv_pages_cached": "KV pages that the prefix cache knows",
    "kv_pages_expected": "most KV pages that the running samples are expected to hold at once before they end",
    "kv_usage_ratio": "used KV pages over all",
}
COUNTERS = {
    "prompt_tokens": "prompt tokens computed, again after a preemption",
    "prompt_tokens_cached": "prompt tokens taken from the prefix cache instead",
    "generated_tokens": "tokens sampled",
    "preemptions": "samples that lost their pages and were queued again",
    "steps": "steps launched",
    "engine_restarts": "engines started in the place of dead ones",
}
LABELLED_COUNTERS = {
    "requests": ("samples that ended", ("finish_reason",)),
    "http_requests": ("HTTP requests answered", ("method", "route", "status")),
}
HISTOGRAMS = {
    "time_to_first_token_seconds": "from a sample's arrival to its first token",
    "inter_token_latency_seconds": "from one token of a sample to the next",
    "request_seconds": "from a sample's arrival to its last token, where it ended by itself",
    "step_seconds": "a turn of the engine's loop that finished a step",
}
INFO_LABELS = ("version", "model", "numerics", "fingerprint")


@dataclass(frozen=True)
class Moment:
    """What only the moment of a scrape knows."""

    ready: bool
    facts: EngineFacts | None
    status: EngineStatus


@dataclass
class ServerMetrics:
    """Totals since the server started. Belongs to one event loop."""

    requests: RequestMetrics = field(default_factory=RequestMetrics)
    http_requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """by method, route and status"""
    in_flight: int = 0
    engine_restarts: int = 0
    last_status: EngineStatus = NO_STATUS

    def forget_engine(self) -> None:
        """The engine is gone: nothing runs, and its counters begin again."""
        self.last_status = NO_STATUS

    def exposition(self, moment: Moment) -> bytes:
        """Prometheus's text format."""
        registry = CollectorRegistry()
        registry.register(_Snapshot(self, moment))
        return generate_latest(registry)


@dataclass(frozen=True, eq=False)
class _Snapshot(Collector):
    metrics: ServerMetrics
    moment: Moment

    def collect(self) -> Iterator[Metric]:
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(PREFIX + name, GAUGES[name], value=value)
        for name, value in self._counters().items():
            yield CounterMetricFamily(PREFIX + name, COUNTERS[name], value=value)
        for name, samples in self._labelled().items():
            help_text, labels = LABELLED_COUNTERS[name]
            family = CounterMetricFamily(PREFIX + name, help_text, labels=labels)
            for values, count in samples.items():
                family.add_metric(values, count)
            yield family
        for name, histogram in self._histograms().items():
            yield _histogram_family(name, histogram)
        if self.moment.facts is not None:
            yield self._info(self.moment.facts)

    def _gauges(self) -> dict[str, float]:
        status = self.moment.status
        return {
            "ready": self.moment.ready,
            "requests_running": status.running,
            "requests_waiting": status.waiting,
            "http_requests_in_flight": self.metrics.in_flight,
            "kv_pages": status.kv_pages_total,
            "kv_pages_used": status.kv_pages_used,
            "kv_pages_cached": status.cached_pages,
            "kv_pages_expected": status.expected_pages,
            "kv_usage_ratio": status.kv_pages_used / max(1, status.kv_pages_total),
        }

    def _counters(self) -> dict[str, float]:
        status = self.moment.status
        return {
            "prompt_tokens": status.prompt_tokens,
            "prompt_tokens_cached": status.cached_tokens,
            "generated_tokens": status.generated_tokens,
            "preemptions": status.preemptions,
            "steps": status.steps,
            "engine_restarts": self.metrics.engine_restarts,
        }

    def _labelled(self) -> dict[str, dict[tuple[str, ...], int]]:
        ended: dict[tuple[str, ...], int] = {
            (reason,): count for reason, count in sorted(self.metrics.requests.ended.items())
        }
        answered: dict[tuple[str, ...], int] = {
            labels: count for labels, count in sorted(self.metrics.http_requests.items())
        }
        return {"requests": ended, "http_requests": answered}

    def _histograms(self) -> dict[str, Histogram]:
        requests, status = self.metrics.requests, self.moment.status
        steps = Histogram(STEP_SECONDS)
        steps.counts = status.step_counts or steps.counts
        steps.total = status.step_seconds
        return {
            "time_to_first_token_seconds": requests.first_token,
            "inter_token_latency_seconds": requests.between_tokens,
            "request_seconds": requests.whole,
            "step_seconds": steps,
        }

    def _info(self, facts: EngineFacts) -> Metric:
        family = GaugeMetricFamily(PREFIX + "info", "always 1; its labels say what runs", labels=INFO_LABELS)
        family.add_metric((samebits.__version__, facts.model, facts.profile, facts.fingerprint), 1)
        return family


def _histogram_family(name: str, histogram: Histogram) -> HistogramMetricFamily:
    family = HistogramMetricFamily(PREFIX + name, HISTOGRAMS[name])
    buckets, seen = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), seen))
    family.add_metric([], buckets, histogram.total)
    return family


def metric_names() -> list[str]:
    """Every metric as Prometheus stores it; a histogram counts as one."""
    counters = [f"{name}_total" for name in (*COUNTERS, *LABELLED_COUNTERS)]
    return [PREFIX + name for name in (*GAUGES, "info", *counters, *HISTOGRAMS)]
