"""What samples took: time to the first token, between tokens, to the end, and how they ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from samebits.engine.histogram import Histogram

FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN_TOKENS_SECONDS = (
    0.001,
    0.002,
    0.004,
    0.008,
    0.015,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    2.5,
)
WHOLE_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class RequestMetrics:
    """Totals over all samples. Belongs to one event loop."""

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN_SECONDS)
        self.between_tokens = Histogram(BETWEEN_TOKENS_SECONDS)
        self.whole = Histogram(WHOLE_SECONDS)
        self.ended: Counter[str] = Counter()
        """samples by how they ended: `stop`, `length`, `abort`, `deadline`, `error`, `refused` (by the engine),
        `left` (by the client)"""

        self.on_end: Callable[[SampleWatch], None] = lambda watch: None
        """called when a sample is over, in the task that ran it"""

    def begin(self) -> SampleWatch:
        """Watch one sample from now on."""
        return SampleWatch(self)


class SampleWatch:
    """The times of one sample, as readings of `time.perf_counter`; 0 before they are known."""

    def __init__(self, metrics: RequestMetrics) -> None:
        self._metrics = metrics
        self.started = time.perf_counter()
        self.queued_seconds = 0.0
        self.first = 0.0
        self.last = 0.0
        self.tokens = 0
        self.reason = "left"

    def see(self, tokens: int, finish: str) -> None:
        """News with so many tokens has come; `finish` is why they are the last ones, or empty."""
        if tokens:
            now = time.perf_counter()
            if self.first:
                self._metrics.between_tokens.add((now - self.last) / tokens, tokens)
            else:
                self.first = now
                self._metrics.first_token.add(now - self.started)
                if tokens > 1:
                    self._metrics.between_tokens.add(0.0, tokens - 1)
            self.last = now
            self.tokens += tokens
        self.reason = finish or self.reason

    def end(self) -> None:
        """The sample is over, as `reason` says."""
        self._metrics.ended[self.reason] += 1
        if self.reason in ("stop", "length"):
            self._metrics.whole.add(time.perf_counter() - self.started)
        self._metrics.on_end(self)
