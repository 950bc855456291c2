"""Spans of requests, received by a collector that speaks OTLP over HTTP."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FAULT_TOKEN, write_checkpoint
from live_server import LiveServer, running

from samebits.config import ServerConfig
from samebits.errors import ConfigError
from samebits.generation.metrics import RequestMetrics
from samebits.server.tracing import Tracing, make_tracing

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
KEY = "sk-traced"


class Collector(ThreadingHTTPServer):
    """Keeps every span that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[Any] = []


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            data = gzip.decompress(data)
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def ask(live: LiveServer, **body: Any) -> int:
    sampling = {"max_new_tokens": 6, "ignore_eos": True}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine", "x-api-key": KEY}
    body = {"input_ids": [5, 6], "sampling_params": sampling} | body
    return live.post("/generate", body, headers=headers).status_code


def attributes(span: Any) -> dict[str, Any]:
    return {entry.key: entry.value.string_value or entry.value.int_value for entry in span.attributes}


def test_a_request_is_four_spans_of_its_callers_trace(tmp_path: Path, collector: Collector) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    with running(write_checkpoint(tmp_path, delay=0.005), otlp_endpoint=endpoint, api_key=[KEY]) as live:
        assert ask(live) == 200
        assert live.get("/health").status_code == 200
        assert live.stop() == 0
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"POST /generate", "queue", "prefill", "decode"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    whole = spans.pop("POST /generate")
    assert whole.parent_span_id.hex() == PARENT
    found = attributes(whole)
    assert found["samebits.request_id"] == "mine"
    assert found["http.response.status_code"] == 200
    assert {span.parent_span_id for span in spans.values()} == {whole.span_id}
    borders = [
        (s.start_time_unix_nano, s.end_time_unix_nano)
        for s in (spans[n] for n in ("queue", "prefill", "decode"))
    ]
    assert all(start <= end for start, end in borders)
    assert [end for _, end in borders[:2]] == [start for start, _ in borders[1:]]
    assert borders[-1][1] - borders[-1][0] > 5 * 0.005 * 1e9 * 0.9
    assert attributes(spans["decode"])["gen_ai.usage.output_tokens"] == 6
    assert abs(borders[-1][1] / 1e9 - time.time()) < 600
    assert KEY not in str(collector.spans)


def test_streams_samples_and_failures(tmp_path: Path, collector: Collector) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    with running(write_checkpoint(tmp_path), otlp_endpoint=endpoint) as live:
        assert ask(live, stream=True) == 200
        assert ask(live, input_ids=[[5], [6], [7]]) == 200
        assert ask(live, input_ids=[FAULT_TOKEN]) == 500
        assert ask(live, input_ids=[-1]) == 400
        assert live.stop() == 0
    names = sorted(span.name for span in collector.spans)
    assert names.count("decode") == 1 + 3
    assert names.count("queue") == 1 + 3 + 1
    requests = [attributes(span) for span in collector.spans if span.name == "POST /generate"]
    assert sorted(found["http.response.status_code"] for found in requests) == [200, 200, 400, 500]


def test_a_collector_that_is_not_there_harms_nobody(tmp_path: Path) -> None:
    with running(write_checkpoint(tmp_path), otlp_endpoint="http://127.0.0.1:9") as live:
        assert ask(live) == 200
        assert live.stop() == 0


def test_the_time_in_the_queue_is_the_engines() -> None:
    exporter = InMemorySpanExporter()
    metrics = RequestMetrics()
    metrics.on_end = Tracing(SimpleSpanProcessor(exporter)).sample_ended
    watch = metrics.begin()
    watch.queued_seconds = 0.25
    watch.first, watch.last, watch.tokens = watch.started + 1.0, watch.started + 3.0, 5
    watch.end()
    seconds = {span.name: (span.end_time - span.start_time) / 1e9 for span in exporter.get_finished_spans()}
    assert seconds == pytest.approx({"queue": 0.25, "prefill": 0.75, "decode": 2.0})


def test_no_endpoint_no_tracing() -> None:
    assert make_tracing(ServerConfig()) is None


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://x", "http://"])
def test_a_bad_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--otlp-endpoint"):
        make_tracing(ServerConfig(otlp_endpoint=endpoint))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"samebits\[tracing\]"):
        make_tracing(ServerConfig(otlp_endpoint="http://localhost:4318"))
