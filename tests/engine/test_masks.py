"""Grammar masks: awaited by their own row alone, and never a reason for a bit to change."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from samebits.cache.pages import PagePool
from samebits.engine.engine import Engine
from samebits.engine.loops import LOOPS
from samebits.engine.masks import Mask, Matcher
from samebits.engine.messages import EngineFacts, EngineRequest, LogprobOptions, RequestEvent
from samebits.errors import RequestError
from samebits.numerics.cpu.operators import CpuOperators
from samebits.sampling_params import ResolvedSampling, SamplingDefaults
from samebits.schedule.scheduler import Scheduler, SchedulerLimits
from samebits.verify.simulation.fake_runner import FakeRunner

VOCABULARY = 70
PAGES, PAGE_TOKENS = 60, 4


@dataclass
class ModuloMatcher:
    """Allows the ids that are `sum of the output` modulo 3; the mask takes its time."""

    pool: ThreadPoolExecutor
    delays: random.Random
    gate: threading.Event
    total: int = 0
    fail_after: int = 10**9
    accepted: list[int] = field(default_factory=list)

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)
        self.total += token_id

    def mask(self) -> Future[Mask]:
        return self.pool.submit(self._compute, self.total, self.delays.choice([0.0, 0.0, 0.004, 0.015]))

    def _compute(self, total: int, delay: float) -> Mask:
        self.gate.wait()
        time.sleep(delay)
        if len(self.accepted) >= self.fail_after:
            raise ValueError("broken grammar")
        words = np.zeros(-(-VOCABULARY // 32), dtype=np.uint32)
        for token_id in range(VOCABULARY):
            if token_id % 3 == total % 3:
                words[token_id // 32] |= np.uint32(1 << (token_id % 32))
        return words.view(np.int32)


class ModuloSource:
    """A mask source with random delays, and a gate that can keep every mask back."""

    def __init__(self, seed: int, fail_after: int = 10**9) -> None:
        self.pool = ThreadPoolExecutor(4)
        self.delays = random.Random(seed)
        self.gate = threading.Event()
        self.gate.set()
        self.fail_after = fail_after

    def matcher(self, grammar: str) -> Matcher:
        if grammar != "modulo":
            raise RequestError(f"unknown grammar {grammar!r}", "grammar")
        return ModuloMatcher(self.pool, self.delays, self.gate, fail_after=self.fail_after)


def make_engine(loop: str, source: ModuloSource | None, step_tokens: int = 16, pages: int = PAGES) -> Engine:
    facts = EngineFacts(
        model="fake",
        family="fake",
        vocabulary=VOCABULARY,
        context_length=200,
        kv_tokens=pages * PAGE_TOKENS,
        eos_token_ids=[0],
        sampling_defaults=SamplingDefaults(),
        default_seed=42,
        profile="exact",
        promises_bits=True,
        fingerprint="",
        plan={},
    )
    runner = FakeRunner(CpuOperators(threads=1), VOCABULARY, pages, PAGE_TOKENS)
    limits = SchedulerLimits(step_tokens, 12, PAGE_TOKENS, -(-200 // PAGE_TOKENS))
    return Engine(facts, runner, Scheduler(limits, PagePool(pages)), LOOPS[loop](runner), 100, source)


def make_requests(count: int) -> list[EngineRequest]:
    chooser = random.Random(7)
    return [
        EngineRequest(
            rid=str(number),
            prompt_ids=[chooser.randrange(VOCABULARY) for _ in range(chooser.randrange(1, 30))],
            sampling=ResolvedSampling(
                temperature=chooser.choice([0.0, 1.0]),
                max_new_tokens=chooser.randrange(1, 30),
                seed=number,
                repetition_penalty=chooser.choice([1.0, 1.3]),
                ignore_eos=True,
            ),
            logprobs=LogprobOptions(output=True, top=1, prompt_start=chooser.choice([-1, 0])),
            grammar="modulo" if number % 2 else "",
        )
        for number in range(count)
    ]


def run(engine: Engine, requests: list[EngineRequest]) -> dict[str, list[RequestEvent]]:
    for request in requests:
        engine.submit(request)
    events: dict[str, list[RequestEvent]] = {}
    while engine.has_work():
        for event in engine.step():
            events.setdefault(event.rid, []).append(event)
        engine.scheduler.check()
    engine.close()
    return events


def answers(events: dict[str, list[RequestEvent]]) -> dict[str, tuple]:
    return {
        rid: (
            [token for event in news for token in event.token_ids],
            [logprobs for event in news for logprobs in event.logprobs],
            news[0].prompt_logprobs,
            news[-1].finish,
        )
        for rid, news in events.items()
    }


def solo_answers(requests: list[EngineRequest]) -> dict[str, tuple]:
    solo = {}
    for request in requests:
        solo.update(answers(run(make_engine("simple", ModuloSource(0), step_tokens=64), [request])))
    return solo


@pytest.mark.parametrize("loop", ["simple", "overlapped"])
@pytest.mark.parametrize("pages", [PAGES, 24])
def test_slow_masks_change_no_bit(loop: str, pages: int) -> None:
    requests = make_requests(14)
    expected = solo_answers(requests)
    for seed in range(3):
        engine = make_engine(loop, ModuloSource(seed), pages=pages)
        assert answers(run(engine, requests)) == expected
        assert pages == PAGES or engine.scheduler.preemptions > 0


def test_masked_tokens_are_allowed_ones() -> None:
    requests = [request for request in make_requests(8) if request.grammar]
    for tokens, *_ in answers(run(make_engine("overlapped", ModuloSource(1)), requests)).values():
        total = 0
        for token in tokens:
            assert token % 3 == total % 3
            total += token


def test_without_masks_other_tokens_come() -> None:
    """The inverse: the masks of these tests do matter."""
    requests = make_requests(8)
    free = [EngineRequest(**{**_fields(request), "grammar": ""}) for request in requests]
    assert answers(run(make_engine("simple", None), free)) != solo_answers(requests)


@pytest.mark.parametrize("loop", ["simple", "overlapped"])
def test_others_go_on_while_a_mask_is_kept_back(loop: str) -> None:
    requests = make_requests(8)
    source = ModuloSource(3)
    engine = make_engine(loop, source)
    source.gate.clear()
    for request in requests:
        engine.submit(request)
    finished: dict[str, list[RequestEvent]] = {}
    deadline = time.monotonic() + 30
    while len([news for news in finished.values() if news[-1].finish]) < 4 and time.monotonic() < deadline:
        for event in engine.step():
            finished.setdefault(event.rid, []).append(event)
    assert {rid for rid, news in finished.items() if news[-1].finish} == {"0", "2", "4", "6"}
    source.gate.set()
    while engine.has_work():
        for event in engine.step():
            finished.setdefault(event.rid, []).append(event)
    engine.close()
    assert answers(finished) == solo_answers(requests)


@pytest.mark.parametrize("loop", ["simple", "overlapped"])
def test_a_failing_grammar_fails_its_own_request_only(loop: str) -> None:
    requests = make_requests(8)
    expected = solo_answers(requests)
    got = answers(run(make_engine(loop, ModuloSource(2, fail_after=2)), requests))
    for request in requests:
        if not request.grammar:
            assert got[request.rid] == expected[request.rid]
        elif request.sampling.max_new_tokens > 2:
            assert got[request.rid][3].reason == "error"
            assert "grammar" in got[request.rid][3].message


def test_grammars_are_refused_where_there_is_no_source() -> None:
    engine = make_engine("simple", None)
    with pytest.raises(RequestError, match="grammar"):
        engine.submit(make_requests(2)[1])
    with pytest.raises(RequestError, match="unknown grammar"):
        make_engine("simple", ModuloSource(0)).submit(
            EngineRequest(rid="x", prompt_ids=[1], sampling=ResolvedSampling(), grammar="other")
        )


def _fields(request: EngineRequest) -> dict:
    return {name: getattr(request, name) for name in request.__struct_fields__}
