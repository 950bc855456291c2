"""Grammar masks: awaited by their own row alone, and never a reason for a bit to change."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
from masked_engine import Events, answers, finished, masked_engine, run, step_into
from msgspec.structs import replace

from samebits.engine.engine import Engine
from samebits.engine.masks import Mask, Matcher
from samebits.engine.messages import EngineRequest, LogprobOptions
from samebits.errors import RequestError
from samebits.sampling_params import ResolvedSampling

VOCABULARY, PAGES = 70, 60


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
    return masked_engine(loop, source, VOCABULARY, 200, step_tokens=step_tokens, pages=pages)


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
    free = [replace(request, grammar="") for request in requests]
    assert answers(run(make_engine("simple", None), free)) != solo_answers(requests)


@pytest.mark.parametrize("loop", ["simple", "overlapped"])
def test_others_go_on_while_a_mask_is_kept_back(loop: str) -> None:
    requests = make_requests(8)
    source = ModuloSource(3)
    engine = make_engine(loop, source)
    source.gate.clear()
    for request in requests:
        engine.submit(request)
    events: Events = {}
    deadline = time.monotonic() + 30
    while len(finished(events)) < 4 and time.monotonic() < deadline:
        step_into(events, engine)
    assert finished(events) == {"0", "2", "4", "6"}
    source.gate.set()
    assert answers(run(engine, events=events)) == solo_answers(requests)


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
