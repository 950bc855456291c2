"""The engine with real grammars: outputs keep to them, and company, pages, loops and slow masks change no bit."""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from grammar_walk import compiler, tokenizer
from masked_engine import Events, answers, finished, masked_engine, run, step_into
from msgspec.structs import replace

from samebits.engine.engine import Engine
from samebits.engine.masks import MaskSource
from samebits.engine.messages import AbortRequest, EngineRequest, LogprobOptions
from samebits.grammar.language import (
    choice_part,
    grammar_of,
    object_part,
    regex_part,
    schema_part,
    text_part,
)
from samebits.grammar.matchers import GrammarMasks
from samebits.sampling_params import ResolvedSampling

PADDING = 13
VOCABULARY = tokenizer("tiny").vocabulary + PADDING
PAGES = 120
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "tags": {"type": "array", "items": {"enum": ["é", "漢", "x"]}, "maxItems": 3},
        "n": {"type": "integer", "minimum": -99, "maximum": 99},
    },
    "required": ["name", "tags", "n"],
    "additionalProperties": False,
}
GRAMMARS = [
    grammar_of(schema_part(SCHEMA, "x")).text,
    grammar_of(regex_part(r"([a-f]{3}-){2,6}[🙂🚀]", "x")).text,
    grammar_of(choice_part(["red", "green", "reddish"], "x")).text,
    grammar_of(object_part("x")).text,
    "",
    grammar_of(text_part('root ::= "(" [a-z é]+ ")" root | "."', "x")).text,
]


class SlowExecutor(Executor):
    """Threads whose work takes its time, at random, or not until a gate is open."""

    def __init__(self, seed: int) -> None:
        self._threads = ThreadPoolExecutor(4)
        self._delays = random.Random(seed)
        self.gate = threading.Event()
        self.gate.set()

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        delay = self._delays.choice([0.0, 0.0, 0.0, 0.003, 0.01])
        return self._threads.submit(self._run, delay, function, *arguments)

    def _run(self, delay: float, function: Any, *arguments: Any) -> Any:
        self.gate.wait()
        time.sleep(delay)
        return function(*arguments)


def masks(executor: Executor | None = None) -> GrammarMasks:
    return GrammarMasks(lambda: compiler("tiny", PADDING), executor)


def make_engine(
    loop: str, source: MaskSource, step_tokens: int = 24, pages: int = PAGES, running: int = 12
) -> Engine:
    return masked_engine(loop, source, VOCABULARY, 300, step_tokens=step_tokens, pages=pages, running=running)


def make_requests(count: int = 14) -> list[EngineRequest]:
    chooser = random.Random(11)
    return [
        EngineRequest(
            rid=str(number),
            prompt_ids=[chooser.randrange(3, 400) for _ in range(chooser.randrange(1, 30))],
            sampling=ResolvedSampling(
                temperature=chooser.choice([0.0, 1.0, 1.5]),
                top_p=chooser.choice([1.0, 0.9]),
                max_new_tokens=chooser.randrange(20, 70),
                seed=number,
                repetition_penalty=chooser.choice([1.0, 1.3]),
                frequency_penalty=chooser.choice([0.0, 0.5]),
            ),
            logprobs=LogprobOptions(output=True, top=2, prompt_start=chooser.choice([-1, 0])),
            grammar=GRAMMARS[number % len(GRAMMARS)],
        )
        for number in range(count)
    ]


def solo(requests: list[EngineRequest]) -> dict[str, tuple]:
    found = {}
    for request in requests:
        found.update(answers(run(make_engine("simple", masks(), step_tokens=64), [request])))
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple]:
    return solo(make_requests())


def test_outputs_keep_to_their_grammars(alone: dict[str, tuple]) -> None:
    ended = set()
    for request in make_requests():
        tokens, _, _, finish = alone[request.rid]
        if finish.reason != "stop" or not request.grammar:
            assert finish.reason in ("stop", "length")
            continue
        text = tokenizer("tiny").decode(tokens)
        kind = GRAMMARS.index(request.grammar)
        ended.add(kind)
        if kind == 0:
            jsonschema.validate(json.loads(text), SCHEMA)
        elif kind == 2:
            assert text in ("red", "green", "reddish")
        elif kind == 3:
            assert isinstance(json.loads(text), dict)
    assert len(ended) >= 3


@pytest.mark.parametrize("loop", ["simple", "overlapped"])
@pytest.mark.parametrize("pages", [PAGES, 40])
def test_company_pages_and_slow_grammars_change_no_bit(
    loop: str, pages: int, alone: dict[str, tuple]
) -> None:
    for seed in range(2):
        engine = make_engine(loop, masks(SlowExecutor(seed)), pages=pages)
        assert answers(run(engine, make_requests())) == alone
        assert pages == PAGES or engine.scheduler.preemptions > 0


def test_an_engine_started_anew_gives_the_same_bits(alone: dict[str, tuple]) -> None:
    """A request whose engine died in the middle of it is computed from its start."""
    requests = make_requests()
    first = make_engine("overlapped", masks())
    for request in requests:
        first.submit(request)
    for _ in range(25):
        first.step()
    first.close()
    assert answers(run(make_engine("overlapped", masks()), requests)) == alone


def test_other_grammars_other_bits(alone: dict[str, tuple]) -> None:
    """The inverse: the grammar decides, and a neighbour's changes nothing."""
    requests = make_requests()
    swapped = [
        replace(request, grammar=GRAMMARS[4] if request.grammar else GRAMMARS[2]) for request in requests[:6]
    ]
    got = answers(run(make_engine("overlapped", masks()), [*swapped, *requests[6:]]))
    for request in requests[:6]:
        assert got[request.rid] != alone[request.rid]
    for request in requests[6:]:
        assert got[request.rid] == alone[request.rid]


@pytest.mark.parametrize("loop", ["simple", "overlapped"])
def test_free_requests_do_not_wait_for_a_grammar(loop: str, alone: dict[str, tuple]) -> None:
    executor = SlowExecutor(0)
    executor.gate.clear()
    engine = make_engine(loop, masks(executor), running=14)
    requests = make_requests()
    free = {request.rid for request in requests if not request.grammar}
    for request in requests:
        engine.submit(request)
    events: Events = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and finished(events) != free:
        step_into(events, engine)
    assert finished(events) == free
    executor.gate.set()
    assert answers(run(engine, events=events)) == alone


@pytest.mark.parametrize("loop", ["simple", "overlapped"])
def test_a_broken_grammar_fails_its_own_request_only(loop: str, alone: dict[str, tuple]) -> None:
    requests = make_requests()
    broken = replace(requests[0], rid="broken", grammar='{"grammars":[{}]}')
    got = answers(run(make_engine(loop, masks(), running=15), [broken, *requests]))
    tokens, _, _, finish = got.pop("broken")
    assert (finish.reason, finish.refusal, finish.field, tokens) == ("error", "request", "grammar", [])
    assert got == alone


EMPTY = grammar_of(text_part("start: A\nA: /a/ & /b/", "x")).text
DEAD_END = grammar_of(text_part('start: "the" A\nA: /a/ & /b/', "x")).text


@pytest.mark.parametrize("loop", ["simple", "overlapped"])
def test_a_grammar_that_no_output_meets_ends_its_own_request_only(loop: str, alone: dict[str, tuple]) -> None:
    requests = make_requests()
    empty, dead_end = (
        replace(requests[0], rid=rid, grammar=grammar)
        for rid, grammar in (("empty", EMPTY), ("dead end", DEAD_END))
    )
    got = answers(run(make_engine(loop, masks(), running=16), [empty, dead_end, *requests]))
    tokens, _, _, finish = got.pop("empty")
    assert (finish.reason, finish.refusal, finish.field, tokens) == ("error", "request", "grammar", [])
    assert "cannot be written" in finish.message
    tokens, _, _, finish = got.pop("dead end")
    assert (finish.reason, finish.refusal, finish.impossible) == ("error", "", True)
    assert tokenizer("tiny").decode(tokens) == "the"
    assert f"after {len(tokens)} tokens" in finish.message and "cannot be written" in finish.message
    assert got == alone


def test_an_abort_spares_the_others(alone: dict[str, tuple]) -> None:
    requests = make_requests()
    engine = make_engine("overlapped", masks(SlowExecutor(1)))
    for request in requests:
        engine.submit(request)
    events: Events = {}
    turn = 0
    while engine.has_work():
        turn += 1
        if turn % 9 == 0 and turn < 60:
            engine.abort(AbortRequest(rid=str(turn // 9)))
        step_into(events, engine)
    engine.close()
    got = answers(events)
    aborted = {rid for rid, answer in got.items() if answer[3].reason == "abort"}
    assert 0 < len(aborted) <= 6
    for rid, answer in got.items():
        if rid in aborted:
            assert alone[rid][0][: len(answer[0])] == answer[0]
        else:
            assert answer == alone[rid]


def test_an_end_that_is_forbidden_or_ignored() -> None:
    base = make_requests()[2]

    def one(rid: str, **changes: Any) -> EngineRequest:
        return replace(base, rid=rid, grammar=GRAMMARS[2], sampling=replace(base.sampling, **changes))

    requests = [one("ends"), one("forbidden", min_new_tokens=30), one("ignored", ignore_eos=True)]
    got = answers(run(make_engine("overlapped", masks()), requests))
    assert got["ends"][3].reason == "stop"
    forbidden = got["forbidden"][3]
    assert forbidden.reason == "error" and "no token is left" in forbidden.message and forbidden.impossible
    length = len(got["ends"][0])
    assert got["ignored"][0][:length] == got["ends"][0]
    assert set(got["ignored"][0][length:]) == {0} and got["ignored"][3].reason == "length"
