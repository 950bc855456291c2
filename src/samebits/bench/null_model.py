"""A model that costs nothing, so that what is left of a step is the host's own work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from samebits.cache.pages import PagePool
from samebits.engine.engine import Engine
from samebits.engine.loops import OverlappedLoop, SimpleLoop
from samebits.engine.messages import EngineFacts
from samebits.numerics.batch import RaggedBatch, SampleResult, SamplingBatch
from samebits.numerics.operators import Operators
from samebits.sampling_params import SamplingDefaults
from samebits.schedule.scheduler import Scheduler, SchedulerLimits

VOCABULARY = 32_000
TOKEN = 17


@dataclass(frozen=True)
class NullOperators:
    """The operators that a step knows of when nobody asks for logprobs."""

    def sample(self, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
        rows = logits.shape[0]
        return SampleResult(
            torch.full((rows,), TOKEN, dtype=torch.int64), torch.zeros(rows, dtype=torch.uint8), None
        )

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        return torch.zeros(logits.shape[0])


@dataclass
class NullRunner:
    """Returns constants, and counts the time that it takes itself."""

    vocabulary: int = VOCABULARY
    seconds: float = 0.0
    processor_seconds: float = 0.0
    operators: Operators = field(default_factory=lambda: cast(Operators, NullOperators()))

    def forward(self, batch: RaggedBatch) -> Tensor:
        return self._timed(lambda: torch.zeros((batch.rows, 1)))

    def logits(self, hidden: Tensor) -> Tensor:
        return self._timed(lambda: hidden)

    def _timed(self, make: Callable[[], Tensor]) -> Tensor:
        start, start_processor = time.perf_counter(), time.process_time()
        made = make()
        self.processor_seconds += time.process_time() - start_processor
        self.seconds += time.perf_counter() - start
        return made


def null_engine(
    max_running: int, step_tokens: int, pages: int, page_tokens: int = 64, loop: str = "simple"
) -> Engine:
    """An engine around the null model."""
    facts = EngineFacts(
        model="null",
        family="null",
        vocabulary=VOCABULARY,
        context_length=pages * page_tokens,
        kv_tokens=pages * page_tokens,
        eos_token_ids=[],
        sampling_defaults=SamplingDefaults(),
        default_seed=None,
        profile="null",
        promises_bits=False,
        fingerprint="",
        plan={},
    )
    limits = SchedulerLimits(step_tokens, max_running, page_tokens, pages_per_request=128)
    runner = NullRunner()
    loops: dict[str, Any] = {"simple": SimpleLoop, "overlapped": OverlappedLoop}
    return Engine(facts, runner, Scheduler(limits, PagePool(pages)), loops[loop](runner), max_waiting=1 << 30)
