"""Samples from requests, and text that ends at the first match however many tokens come at once (trap 13)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from fake_engine import build_fake_engine, write_checkpoint
from tiny_tokenizer import make_tokenizer

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.async_engine import AsyncEngine
from samebits.engine.logs import request_id
from samebits.engine.messages import EngineFailed, EngineRequest, Finish, RequestEvent, TokenLogprobs
from samebits.engine.transport import ThreadTransport
from samebits.errors import EngineError, RequestError
from samebits.generation.generator import Generator
from samebits.generation.metrics import RequestMetrics
from samebits.generation.samples import GenerationRequest, Sample, SampleOutput
from samebits.sampling_params import SamplingParams
from samebits.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(make_tokenizer())
IDS = TOKENIZER.encode("the same request gives the same bits")


class ScriptedEngine(AsyncEngine):
    """An engine front that hands out given events and remembers whether it was left early."""

    def __init__(self, facts_of: AsyncEngine, sizes: Sequence[int], finish: Finish) -> None:
        super().__init__(facts_of._transport)
        self._facts = facts_of.facts
        self.sizes = sizes
        self.finish = finish
        self.left_early = False

    async def stream(self, request: EngineRequest) -> AsyncGenerator[RequestEvent, None]:
        start = 0
        done = False
        try:
            for size in self.sizes:
                ids = IDS[start : start + size]
                start += size
                done = start >= len(IDS)
                yield RequestEvent(
                    rid=request.rid,
                    token_ids=ids,
                    logprobs=[TokenLogprobs(token_id, -1.0) for token_id in ids],
                    finish=self.finish if done else None,
                )
        finally:
            self.left_early = not done


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncEngine:
    """A started and stopped engine, for its facts."""
    return with_facts(write_checkpoint(tmp_path_factory.mktemp("checkpoint")))


def with_facts(folder: Path, **settings: str) -> AsyncEngine:
    async def start() -> AsyncEngine:
        model = ModelConfig(model=str(folder), **settings)
        front = AsyncEngine(ThreadTransport(model, EngineConfig(), build_fake_engine))
        await front.start()
        await front.shutdown()
        front.failure = None
        return front

    return asyncio.run(start())


def cuts(size: int) -> list[int]:
    return [size] * (len(IDS) // size + 1)


def run(engine: AsyncEngine, size: int, params: SamplingParams, finish: Finish) -> tuple[SampleOutput, bool]:
    scripted = ScriptedEngine(engine, cuts(size), finish)
    generator = Generator(scripted, TOKENIZER)
    [sample] = generator.prepare([GenerationRequest("the", params)])
    result = asyncio.run(generator.complete(sample))
    return result, scripted.left_early


@pytest.mark.parametrize("size", [2, 3, 5, 100])
@pytest.mark.parametrize("stop", ["quest", "same b", "he same", "bits", "s"])
def test_late_notice_of_a_stop_string_changes_nothing(engine: AsyncEngine, size: int, stop: str) -> None:
    params = SamplingParams(stop=[stop], max_new_tokens=50)
    end = Finish(reason="length")
    at_once, _ = run(engine, 1, params, end)
    late, _ = run(engine, size, params, end)
    assert late == at_once
    assert at_once.finish is not None
    assert at_once.finish.matched == stop
    assert len(at_once.logprobs) == len(at_once.token_ids)
    assert stop in TOKENIZER.decode(at_once.token_ids)
    assert stop not in TOKENIZER.decode(at_once.token_ids[:-1])


def test_a_match_aborts_the_rest(engine: AsyncEngine) -> None:
    assert run(engine, 1, SamplingParams(stop=["same"]), Finish(reason="length"))[1]
    assert not run(engine, 1, SamplingParams(), Finish(reason="length"))[1]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_stop_token_is_an_id_and_not_a_text(engine: AsyncEngine, size: int) -> None:
    finish = Finish(reason="stop", matched_token=IDS[-1])
    trimmed, _ = run(engine, size, SamplingParams(), finish)
    kept, _ = run(engine, size, SamplingParams(no_stop_trim=True), finish)
    assert trimmed.token_ids == kept.token_ids == tuple(IDS)
    assert trimmed.text == TOKENIZER.decode(IDS[:-1])
    assert kept.text == TOKENIZER.decode(IDS)
    assert trimmed.finish is not None
    assert trimmed.finish.matched == IDS[-1]


def prepare(engine: AsyncEngine, *requests: GenerationRequest) -> list[Sample]:
    return Generator(engine, TOKENIZER).prepare(requests)


def test_samples_unfold_with_their_indices(engine: AsyncEngine) -> None:
    params = SamplingParams(n=3, sample_index=5, seed=-1)
    samples = prepare(engine, GenerationRequest("the", params, rid="x"), GenerationRequest([5, 6]))
    assert [sample.request.sampling.sample_index for sample in samples] == [5, 6, 7, 0]
    assert [sample.request.sampling.seed for sample in samples] == [(1 << 64) - 1] * 3 + [42]
    assert [sample.prompt_index for sample in samples] == [0, 0, 0, 1]
    assert [sample.rid for sample in samples[:3]] == ["x_0", "x_1", "x_2"]
    assert len({sample.request.rid for sample in samples}) == 4


def test_equal_samples_are_logged(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """At temperature 0 equal prompts mean nothing; above it they are equal samples, which nobody wants."""
    prepare(engine, *[GenerationRequest("the", SamplingParams(temperature=0.0))] * 2)
    prepare(engine, GenerationRequest("the"), GenerationRequest("same"))
    prepare(engine, GenerationRequest("the"), GenerationRequest("the", SamplingParams(seed=1)))
    assert not caplog.records
    samples = prepare(engine, *[GenerationRequest("the", SamplingParams(n=2))] * 3)
    [record] = caplog.records
    assert "4 of 6 samples" in record.getMessage()
    assert all("3 samples of this batch" in sample.warnings[0] for sample in samples)


def test_a_random_seed_is_drawn_once_a_request(tmp_path: Path) -> None:
    engine = with_facts(write_checkpoint(tmp_path), default_seed="random")
    two = SamplingParams(n=2)
    samples = prepare(engine, GenerationRequest("the", two), GenerationRequest("the", two))
    seeds = [sample.request.sampling.seed for sample in samples]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert all(seed < 1 << 53 for seed in seeds)
    assert not any(sample.warnings for sample in samples)
    [named] = prepare(engine, GenerationRequest("the", SamplingParams(seed=7)))
    assert named.request.sampling.seed == 7


def test_defaults_of_the_plan_fill_the_blanks(tmp_path: Path) -> None:
    engine = with_facts(write_checkpoint(tmp_path, temperature=0.25))
    [blank] = prepare(engine, GenerationRequest("the"))
    [given] = prepare(engine, GenerationRequest("the", SamplingParams(temperature=0.5)))
    assert blank.request.sampling.temperature == 0.25
    assert given.request.sampling.temperature == 0.5


def test_without_a_tokenizer_only_ids(engine: AsyncEngine) -> None:
    generator = Generator(ScriptedEngine(engine, [100], Finish(reason="length")), None)
    for request, field in (
        (GenerationRequest("the"), "text"),
        (GenerationRequest([5], SamplingParams(stop=["x"])), "stop"),
    ):
        with pytest.raises(RequestError, match="tokenizer") as caught:
            generator.prepare([request])
        assert caught.value.field == field
    [sample] = generator.prepare([GenerationRequest([5])])
    result = asyncio.run(generator.complete(sample))
    assert (result.text, result.token_ids) == ("", tuple(IDS))


def test_the_engine_is_told_whose_request_it_is(engine: AsyncEngine) -> None:
    async def rids() -> list[str]:
        request_id.set("a/b")
        return [sample.request.rid for sample in prepare(engine, GenerationRequest([5], SamplingParams(n=2)))]

    found = asyncio.run(rids())
    assert [rid.rpartition("/")[0] for rid in found] == ["a/b", "a/b"]
    assert len(set(found)) == 2
    assert request_id.get() == "", "it belongs to the task"
    [sample] = prepare(engine, GenerationRequest([5]))
    assert "/" not in sample.request.rid


def test_samples_are_counted_by_how_they_ended(engine: AsyncEngine) -> None:
    metrics = RequestMetrics()

    async def play() -> None:
        whole = Generator(ScriptedEngine(engine, cuts(2), Finish(reason="length")), TOKENIZER, metrics)
        for params in (SamplingParams(), SamplingParams(stop=["bits"])):
            [sample] = whole.prepare([GenerationRequest("the", params)])
            await whole.complete(sample)
        async with aclosing(whole.stream(sample)) as updates:
            await anext(updates)
        engine.failure = EngineFailed(message="gone")
        dead = Generator(engine, TOKENIZER, metrics)
        with pytest.raises(EngineError, match="gone"):
            await dead.complete(sample)
        engine.failure = None

    asyncio.run(play())
    assert metrics.ended == {"length": 1, "stop": 1, "left": 1, "error": 1}
    assert sum(metrics.whole.counts) == 2
    assert sum(metrics.first_token.counts) == 3
