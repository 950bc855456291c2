"""The asynchronous front over a thread and over a process: routing, aborts, queue, death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from fake_engine import CRASH_TOKEN, KILL_TOKEN, build_fake_engine, write_checkpoint

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.async_engine import AsyncEngine
from samebits.engine.messages import EngineRequest, RequestEvent
from samebits.engine.process import ProcessTransport
from samebits.engine.transport import ThreadTransport
from samebits.engine.validate import QueueFullError
from samebits.errors import ConfigError, EngineError, RequestError
from samebits.sampling_params import ResolvedSampling

KINDS = ("thread", "process")
Scenario = Callable[[AsyncEngine], Awaitable[None]]


def make_engine(kind: str, folder: Path, max_waiting: int = 100) -> AsyncEngine:
    model, engine = ModelConfig(model=str(folder)), EngineConfig(max_waiting=max_waiting)
    if kind == "thread":
        return AsyncEngine(ThreadTransport(model, engine, build_fake_engine))
    return AsyncEngine(ProcessTransport(model, engine, "fake_engine:build_fake_engine"))


def play(kind: str, folder: Path, scenario: Scenario, max_waiting: int = 100) -> None:
    """Run a scenario on a started engine."""

    async def run() -> None:
        engine = make_engine(kind, folder, max_waiting)
        try:
            await engine.start()
            await scenario(engine)
        finally:
            await engine.shutdown()

    asyncio.run(asyncio.wait_for(run(), 60))


def request(rid: str, first: int = 5, tokens: int = 4) -> EngineRequest:
    sampling = ResolvedSampling(temperature=0.0, max_new_tokens=tokens, ignore_eos=True)
    return EngineRequest(rid=rid, prompt_ids=[first, 6], sampling=sampling)


async def collect(engine: AsyncEngine, wanted: EngineRequest) -> list[RequestEvent]:
    return [event async for event in engine.stream(wanted)]


async def collect_rest(events: AsyncGenerator[RequestEvent, None]) -> list[RequestEvent]:
    return [event async for event in events]


def tokens_of(events: list[RequestEvent]) -> list[int]:
    return [token_id for event in events for token_id in event.token_ids]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, delay=0.002)


@pytest.mark.parametrize("kind", KINDS)
def test_events_reach_their_own_request(kind: str, folder: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        alone = [tokens_of(await collect(engine, request(f"alone-{first}", first))) for first in range(5, 15)]
        together = await asyncio.gather(
            *(collect(engine, request(f"r-{first}", first)) for first in range(5, 15))
        )
        assert [tokens_of(events) for events in together] == alone
        assert len({tuple(ids) for ids in alone}) == 10
        assert all(events[-1].finish is not None for events in together)
        assert engine.running == 0

    play(kind, folder, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_and_facts(kind: str, folder: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        assert engine.facts.fingerprint == "fake-fingerprint"
        statuses = await asyncio.gather(*(engine.status() for _ in range(5)))
        assert [status.running for status in statuses] == [0] * 5
        assert await engine.flush_cache() == 3

    play(kind, folder, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_abort_and_early_leave(kind: str, folder: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        seen = []
        async for event in engine.stream(request("a", tokens=2000)):
            seen.append(event)
            engine.abort("a")
        assert seen[-1].finish is not None
        assert seen[-1].finish.reason == "abort"
        async with aclosing(engine.stream(request("b", tokens=2000))) as events:
            async for _ in events:
                break
        while (await engine.status()).running:
            await asyncio.sleep(0.01)
        assert engine.running == 0
        engine.abort("unknown")

    play(kind, folder, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_are_their_own(kind: str, folder: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        running = asyncio.create_task(collect(engine, request("long", tokens=200)))
        with pytest.raises(RequestError) as caught:
            await collect(engine, request("bad", first=10**6))
        assert caught.value.field == "input_ids"
        with pytest.raises(RequestError, match="already"):
            await collect(engine, request("long"))
        await collect(engine, request("second"))
        others = [asyncio.create_task(collect(engine, request(f"{i}", tokens=50))) for i in range(5)]
        results = await asyncio.gather(*others, return_exceptions=True)
        assert sum(isinstance(result, QueueFullError) for result in results) == 4
        assert len(tokens_of(await running)) == 200

    play(kind, folder, scenario, max_waiting=2)


@pytest.mark.parametrize(
    ("kind", "token", "cause"),
    [
        ("thread", CRASH_TOKEN, "went wrong"),
        ("process", CRASH_TOKEN, "went wrong"),
        ("process", KILL_TOKEN, "SIGKILL"),
    ],
)
def test_death_fails_everything_at_once(kind: str, token: int, cause: str, folder: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        long = [asyncio.create_task(collect(engine, request(f"{i}", tokens=2000))) for i in range(3)]
        await asyncio.sleep(0.05)
        fatal = asyncio.create_task(collect(engine, request("fatal", first=token)))
        calls = [asyncio.create_task(engine.status()) for _ in range(2)]
        results = await asyncio.wait_for(asyncio.gather(*long, fatal, return_exceptions=True), 10)
        for result in results:
            assert isinstance(result, EngineError)
            assert cause in str(result)
        await asyncio.gather(*calls, return_exceptions=True)
        assert engine.failure is not None
        with pytest.raises(EngineError, match=cause):
            await collect(engine, request("later"))
        with pytest.raises(EngineError, match=cause):
            await engine.status()

    play(kind, folder, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_is_whole_outlives_the_engine(kind: str, folder: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        whole = tokens_of(await collect(engine, request("before", tokens=20)))
        slow, cut = engine.stream(request("slow", tokens=20)), engine.stream(request("cut", tokens=2000))
        found = [*(await anext(slow)).token_ids]
        assert (await anext(cut)).token_ids
        while (await engine.status()).running > 1:  # its end is under way before the reply
            await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="went wrong"):
            await collect(engine, request("fatal", first=CRASH_TOKEN))
        found += [token_id async for event in slow for token_id in event.token_ids]
        assert found == whole
        with pytest.raises(EngineError, match="went wrong"):
            await collect_rest(cut)

    play(kind, folder, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_user_can_mend_is_a_configuration_error(kind: str, tmp_path: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        raise AssertionError("it started")

    with pytest.raises(ConfigError, match="broken on purpose"):
        play(kind, write_checkpoint(tmp_path, broken=True), scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown_fails_what_runs(kind: str, folder: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        running = asyncio.create_task(collect(engine, request("long", tokens=2000)))
        await asyncio.sleep(0.05)
        await engine.shutdown()
        with pytest.raises(EngineError, match="shut down"):
            await running

    play(kind, folder, scenario)
