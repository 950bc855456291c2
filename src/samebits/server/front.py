"""What every route of a server shares: its settings, the engine, and whether requests are taken."""

from __future__ import annotations

import time
from enum import Enum

from samebits.config import EngineConfig, ServerConfig
from samebits.engine.async_engine import AsyncEngine
from samebits.errors import RequestError
from samebits.generation.generator import Generator
from samebits.generation.text_parts import load_text_parts
from samebits.server.http import UnavailableError
from samebits.server.metrics import ServerMetrics
from samebits.server.tracing import Tracing, make_tracing
from samebits.text.chat import ChatTemplate

MANY_SAMPLES = 4096
"""a request may hold so many, however short the queue"""


def most_samples(engine: EngineConfig) -> int:
    """Samples that one request may hold: those that could all wait at once."""
    return max(MANY_SAMPLES, engine.max_waiting * engine.data_parallel)


def check_count(samples: int, most: int, field: str) -> None:
    """Raise `RequestError` for more samples than can wait: the queue would refuse them one by one, and meanwhile they
    would hold up everybody else."""
    if samples > most:
        message = f"{field}: a request of {samples} samples is too large: {most} can wait (--max-waiting)"
        raise RequestError(message, field, "unsupported_value")


class Phase(Enum):
    """Where a server is in its life. Only READY takes requests."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"


class Front:
    """A server's shared state. Belongs to one event loop. Raises `ConfigError` for traces that cannot be sent."""

    def __init__(self, config: ServerConfig, engine: AsyncEngine, most_samples: int = MANY_SAMPLES) -> None:
        """`most_samples`: of one request."""
        self.config = config
        self.most_samples = most_samples
        self.engine = engine
        self.phase = Phase.STARTING
        self.started_at = time.time()
        self.metrics = ServerMetrics()
        self.tracing: Tracing | None = make_tracing(config)
        if self.tracing is not None:
            self.metrics.requests.on_end = self.tracing.sample_ended
        self.chat_template: ChatTemplate | None = None
        self._generator: Generator | None = None

    @property
    def generator(self) -> Generator:
        """The way to generate. Raises `UnavailableError` unless requests are taken."""
        if self.phase is Phase.READY and self._generator is not None:
            return self._generator
        reasons = {
            Phase.STARTING: "the model is being loaded",
            Phase.RESTARTING: "the engine died and is being started anew",
            Phase.DRAINING: "the server is shutting down",
            Phase.FAILED: "the engine has failed",
        }
        raise UnavailableError(reasons.get(self.phase, "the server is not ready"))

    def check_ready(self) -> None:
        """Raise `UnavailableError` unless requests are taken."""
        _ = self.generator

    @property
    def body_limit(self) -> int:
        """Largest body in bytes."""
        return self.config.max_body_mib << 20

    @property
    def model_name(self) -> str:
        """Name of the model in responses."""
        return self.config.served_model_name or self.engine.facts.model

    async def start(self) -> None:
        """Start the engine and take requests. Raises what the engine or the tokenizer's files raise."""
        text = load_text_parts(await self.engine.start())
        self.chat_template = text.chat_template
        self._generator = Generator(
            self.engine, text.tokenizer, self.metrics.requests, self.config.default_deadline_seconds
        )
        if self.phase in (Phase.STARTING, Phase.RESTARTING):
            self.phase = Phase.READY

    async def replace_engine(self, engine: AsyncEngine) -> None:
        """Put a new engine, not started yet, in the place of a dead one."""
        await self.engine.shutdown()
        self.engine = engine
