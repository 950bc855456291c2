"""Spans of requests for an OpenTelemetry collector (the extra `tracing`). Off unless an endpoint is set.

    POST /v1/completions            one span an HTTP request, child of the caller's where a `traceparent` says so
      queue, prefill, decode        three a sample: until its first step, its first token, its last token

Spans say how long things took, by which id and with how many tokens; they hold no text.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.types import Scope

import samebits
from samebits.config import ServerConfig
from samebits.errors import ConfigError
from samebits.generation.metrics import SampleWatch

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanProcessor

CLOSE_MILLISECONDS = 5000
TRACES_PATH = "/v1/traces"


def make_tracing(config: ServerConfig) -> Tracing | None:
    """What the settings ask for; None without an endpoint. Raises `ConfigError` naming the setting."""
    endpoint = config.otlp_endpoint
    if not endpoint:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--otlp-endpoint must be like http://localhost:4318, got {endpoint!r}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError("--otlp-endpoint needs OpenTelemetry: pip install 'samebits[tracing]'") from error
    if parts.path in ("", "/"):
        endpoint = endpoint.rstrip("/") + TRACES_PATH
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


class Tracing:
    """Makes spans. The span of a request is the current one of its task, and of the tasks that it starts."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "samebits", "service.version": samebits.__version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("samebits", samebits.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._api = trace

    def begin(self, scope: Scope, request_id: str) -> Any:
        """The span of an HTTP request that begins in this task; given to `end` when it is over."""
        from opentelemetry import context

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        parent = self._propagator.extract(headers, context=context.Context())
        span = self._tracer.start_span(
            scope["method"],
            context=parent,
            kind=self._api.SpanKind.SERVER,
            attributes={"samebits.request_id": request_id, "http.request.method": scope["method"]},
        )
        context.attach(self._api.set_span_in_context(span))  # the task is the request's own
        return span

    def end(self, span: Any, method: str, route: str, status: int) -> None:
        """The request was answered, or its client left."""
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._api.StatusCode.ERROR)
        span.end()

    def sample_ended(self, watch: SampleWatch) -> None:
        """The spans of a sample, made when it is over: a running one pays for none."""
        ended = time.perf_counter()
        zero = time.time_ns() - round(1e9 * ended)
        first = watch.first or ended
        queued = min(watch.started + watch.queued_seconds, first)
        attributes: dict[str, Any] = {
            "samebits.finish_reason": watch.reason,
            "gen_ai.usage.output_tokens": watch.tokens,
        }
        # A sample without a token may never have left the queue: what is known is that it waited.
        borders = [("queue", watch.started, queued if watch.first else ended)]
        if watch.first:
            borders += [("prefill", queued, first), ("decode", first, watch.last)]
        for name, begin, end in borders:
            span = self._tracer.start_span(name, start_time=zero + round(1e9 * begin), attributes=attributes)
            span.end(zero + round(1e9 * end))

    def close(self) -> None:
        """Send what is left."""
        self._provider.force_flush(CLOSE_MILLISECONDS)
        self._provider.shutdown()
