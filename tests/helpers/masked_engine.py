"""Engines of the fake model whose grammar masks a test provides, and what they answer."""

from __future__ import annotations

from collections.abc import Iterable

from samebits.cache.pages import PagePool
from samebits.engine.engine import Engine
from samebits.engine.loops import LOOPS
from samebits.engine.masks import MaskSource
from samebits.engine.messages import EngineFacts, EngineRequest, RequestEvent
from samebits.numerics.cpu.operators import CpuOperators
from samebits.sampling_params import SamplingDefaults
from samebits.schedule.scheduler import Scheduler, SchedulerLimits
from samebits.verify.simulation.fake_runner import FakeRunner

PAGE_TOKENS = 4
Events = dict[str, list[RequestEvent]]
"""by request"""


def masked_engine(
    loop: str,
    source: MaskSource | None,
    vocabulary: int,
    context: int,
    *,
    step_tokens: int,
    pages: int,
    running: int = 12,
) -> Engine:
    """An engine that asks `source` for its masks."""
    facts = EngineFacts(
        model="fake",
        family="fake",
        vocabulary=vocabulary,
        context_length=context,
        kv_tokens=pages * PAGE_TOKENS,
        eos_token_ids=[0],
        sampling_defaults=SamplingDefaults(),
        default_seed=42,
        profile="exact",
        promises_bits=True,
        fingerprint="",
        plan={},
    )
    runner = FakeRunner(CpuOperators(threads=1), vocabulary, pages, PAGE_TOKENS)
    limits = SchedulerLimits(step_tokens, running, PAGE_TOKENS, -(-context // PAGE_TOKENS))
    return Engine(facts, runner, Scheduler(limits, PagePool(pages)), LOOPS[loop](runner), 100, source)


def step_into(events: Events, engine: Engine) -> None:
    """One step; its events go to those before."""
    for event in engine.step():
        events.setdefault(event.rid, []).append(event)


def run(engine: Engine, requests: Iterable[EngineRequest] = (), events: Events | None = None) -> Events:
    """Submit, run to the end, each step checked, and close; `events` came before."""
    found = {} if events is None else events
    for request in requests:
        engine.submit(request)
    while engine.has_work():
        step_into(found, engine)
        engine.scheduler.check()
    engine.close()
    return found


def finished(events: Events) -> set[str]:
    """Whose last event has come."""
    return {rid for rid, news in events.items() if news[-1].finish}


def answers(events: Events) -> dict[str, tuple]:
    """(token ids, logprobs, prompt logprobs, finish) by request."""
    return {
        rid: (
            [token for event in news for token in event.token_ids],
            [logprobs for event in news for logprobs in event.logprobs],
            news[0].prompt_logprobs,
            news[-1].finish,
        )
        for rid, news in events.items()
    }
