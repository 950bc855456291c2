"""An engine that costs nothing, for the server's own process to be measured: every running request gets a token a
step, the text of which is real."""

from __future__ import annotations

import time
from itertools import islice

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.messages import (
    AbortRequest,
    EngineFacts,
    EngineRequest,
    EngineStatus,
    Finish,
    RequestEvent,
)
from samebits.engine.service import Progress
from samebits.models.load import read_model_files
from samebits.sampling_params import SamplingDefaults

STEPS_A_SECOND = 200
"""of the paced engine: what a small model on a fast device does"""
FIRST_TOKEN, TOKENS = 300, 3000
"""its tokens are plain words of the bundled vocabulary, one after another"""
PAGES = 1


class NullService:
    """Answers at once, or a token at a fixed pace. Implements `engine.service.SteppedEngine`."""

    def __init__(self, facts: EngineFacts, pace_seconds: float) -> None:
        self.facts = facts
        self._pace = pace_seconds
        self._due = 0.0
        self._left: dict[str, int] = {}
        self._steps = 0

    def submit(self, request: EngineRequest) -> None:
        self._left[request.rid] = request.sampling.max_new_tokens

    def abort(self, command: AbortRequest) -> None:
        self._left.pop(command.rid, None)

    def has_work(self) -> bool:
        return bool(self._left)

    def step(self) -> list[RequestEvent]:
        """A token for everybody; sleeps until the step is due."""
        if not self._left:
            return []
        if self._pace:
            now = time.monotonic()
            self._due = max(self._due + self._pace, now)
            time.sleep(self._due - now)
        self._steps += 1
        token_ids = [FIRST_TOKEN + self._steps % TOKENS]
        events = []
        for rid, left in list(self._left.items()):
            if left > 1:
                self._left[rid] = left - 1
                events.append(RequestEvent(rid=rid, token_ids=token_ids))
            else:
                del self._left[rid]
                events.append(RequestEvent(rid=rid, token_ids=token_ids, finish=Finish(reason="length")))
        return events

    def status(self, call: int) -> EngineStatus:
        return EngineStatus(
            call=call,
            running=len(self._left),
            waiting=0,
            steps=self._steps,
            kv_pages_total=PAGES,
            kv_pages_used=0,
            prompt_tokens=0,
            generated_tokens=0,
            cached_tokens=0,
            preemptions=0,
        )

    def flush_cache(self) -> int:
        return 0

    def close(self) -> None:
        pass


def build_unpaced(model: ModelConfig, engine: EngineConfig, progress: Progress) -> NullService:
    """As fast as it can be read."""
    return NullService(_facts(model), 0.0)


def build_paced(model: ModelConfig, engine: EngineConfig, progress: Progress) -> NullService:
    """`STEPS_A_SECOND` tokens a second for every request."""
    return NullService(_facts(model), 1.0 / STEPS_A_SECOND)


BUILDERS = {name: f"{__name__}:build_{name}" for name in ("unpaced", "paced")}


def _facts(model: ModelConfig) -> EngineFacts:
    files = read_model_files(model)
    return EngineFacts(
        model="null",
        folder=str(files.folder),
        family="null",
        vocabulary=files.spec.vocabulary,
        context_length=files.context_length,
        kv_tokens=1 << 30,
        eos_token_ids=list(islice(files.end_tokens, 1)),
        sampling_defaults=SamplingDefaults(),
        default_seed=42,
        profile="null",
        promises_bits=False,
        fingerprint="null",
        plan={},
    )
