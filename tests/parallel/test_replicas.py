"""Several engines behind one front: routing, joined counters, equal bits on every replica, refusal of another plan."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_engine import build_fake_engine, write_checkpoint

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.async_engine import AsyncEngine
from samebits.engine.build import build_engine
from samebits.engine.messages import Command, EngineRequest, LogprobOptions, RequestEvent
from samebits.engine.process import ProcessTransport
from samebits.engine.replicas import ReplicaTransport
from samebits.engine.routing import PREFIX_SLACK, REMEMBERED_PIECES, Router, prefix_pieces
from samebits.engine.transport import Deliver, ThreadTransport, Transport
from samebits.engine.validate import validate_request
from samebits.errors import ConfigError, EngineError, RequestError
from samebits.llm import LLM
from samebits.sampling_params import ResolvedSampling

REPLICAS = 3
TINY = ModelConfig(model="tiny", load_format="dummy")
SMALL = EngineConfig(kv_memory_mib=16, step_tokens=96, threads=1)


def play(transports: list[Any], scenario: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    """Run a scenario on a front over replicas."""

    async def run() -> None:
        engine = AsyncEngine(ReplicaTransport(transports))
        try:
            await engine.start()
            await scenario(engine)
        finally:
            await engine.shutdown()

    asyncio.run(asyncio.wait_for(run(), 120))


def request(rid: str, prompt: list[int], replica: int | None = None, tokens: int = 12) -> EngineRequest:
    return EngineRequest(
        rid=rid,
        prompt_ids=prompt,
        sampling=ResolvedSampling(temperature=0.9, max_new_tokens=tokens, ignore_eos=True),
        logprobs=LogprobOptions(output=True, prompt_start=0, top=2),
        replica=replica,
    )


async def collect(engine: AsyncEngine, wanted: EngineRequest) -> list[RequestEvent]:
    return [event async for event in engine.stream(wanted)]


def bits(events: list[RequestEvent]) -> bytes:
    """Tokens and logprobs of a request."""
    tokens = [token for event in events for token in event.token_ids]
    logprobs = [entry for event in events for entry in event.logprobs or ()]
    prompt = [entry for event in events for entry in event.prompt_logprobs or ()]
    return msgspec.msgpack.encode((tokens, logprobs, prompt))


def test_the_same_request_on_every_replica_has_the_same_bits() -> None:
    prompt = [(7 * i) % 1201 for i in range(200)]

    async def scenario(engine: AsyncEngine) -> None:
        assert engine.facts.replicas == REPLICAS
        neighbours = [collect(engine, request(f"other {i}", [i, 2 * i + 1] * 20)) for i in range(7)]
        asked = [collect(engine, request(f"same {index}", prompt, index)) for index in range(REPLICAS)]
        answers = await asyncio.gather(*asked, *neighbours)
        assert len({bits(answer) for answer in answers[:REPLICAS]}) == 1
        assert bits(answers[0]) not in {bits(answer) for answer in answers[REPLICAS:]}
        changed = await collect(engine, request("changed", [*prompt[:-1], 3], 1))
        assert bits(changed) != bits(answers[0])
        status = await engine.status()
        assert status.kv_pages_total == REPLICAS * (await one_status()).kv_pages_total
        assert status.generated_tokens >= 12 * (REPLICAS + 8)
        assert await engine.flush_cache() > 0

    async def one_status() -> Any:
        alone = AsyncEngine(ThreadTransport(TINY, SMALL, build_engine))
        await alone.start()
        try:
            return await alone.status()
        finally:
            await alone.shutdown()

    play([ThreadTransport(TINY, SMALL, build_engine) for _ in range(REPLICAS)], scenario)


def test_a_replica_with_another_fingerprint_is_refused() -> None:
    transports = [
        ThreadTransport(TINY, SMALL, build_engine),
        ThreadTransport(ModelConfig(model="tiny", load_format="dummy", dummy_seed=1), SMALL, build_engine),
    ]

    async def scenario(engine: AsyncEngine) -> None:
        raise AssertionError("started")

    with pytest.raises(ConfigError, match=r"replica 1 has the fingerprint sb1-\w+ and replica 0 sb1-\w+"):
        play(transports, scenario)


@pytest.mark.parametrize("smaller", [0, 1])
def test_what_the_smallest_replica_has_no_room_for_is_refused_by_all(smaller: int) -> None:
    """Replicas on GPUs that others use, too, may have different numbers of KV pages."""
    sizes = [replace(SMALL, kv_pages=2 if index == smaller else 4) for index in range(2)]
    transports = [ThreadTransport(TINY, size, build_engine) for size in sizes]

    async def scenario(engine: AsyncEngine) -> None:
        assert engine.facts.kv_tokens == 2 * SMALL.page_tokens
        for replica in range(2):
            fits = request(f"fits {replica}", [1] * engine.facts.kv_tokens, replica, tokens=0)
            assert (await collect(engine, fits))[-1].finish is not None
        with pytest.raises(RequestError, match="KV slots"):
            validate_request(request("large", [1] * engine.facts.kv_tokens, 1 - smaller, 1), engine.facts)

    play(transports, scenario)


def test_a_replica_that_dies_ends_the_front(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    model = ModelConfig(model=str(tmp_path))
    transports = [ProcessTransport(model, EngineConfig(), "fake_engine:build_fake_engine") for _ in range(2)]

    async def scenario(engine: AsyncEngine) -> None:
        os.kill(transports[1].process_id or 0, signal.SIGKILL)
        await asyncio.wait_for(engine.failed.wait(), 20)
        with pytest.raises(EngineError, match="replica 1: the engine process was killed by SIGKILL"):
            await collect(engine, request("late", [1, 2]))

    play(transports, scenario)


def test_aborts_reach_the_right_replica(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, delay=0.01)
    model = ModelConfig(model=str(tmp_path))
    transports = [ThreadTransport(model, EngineConfig(), build_fake_engine) for _ in range(2)]

    async def scenario(engine: AsyncEngine) -> None:
        endless = [
            asyncio.ensure_future(collect(engine, request(f"r{i}", [5, 6], tokens=100_000))) for i in range(4)
        ]
        await asyncio.sleep(0.1)
        for i in range(4):
            engine.abort(f"r{i}")
        for answer in await asyncio.gather(*endless):
            assert answer[-1].finish is not None and answer[-1].finish.reason == "abort"

    play(transports, scenario)


@dataclass
class Recorded:
    """A transport that remembers which requests it was sent."""

    inner: Transport
    sent: list[str] = field(default_factory=list)

    def start(self, deliver: Deliver) -> None:
        self.inner.start(deliver)

    def send(self, command: Command) -> None:
        if isinstance(command, EngineRequest):
            self.sent.append(command.rid)
        self.inner.send(command)

    async def stop(self) -> None:
        await self.inner.stop()


def test_requests_that_are_over_are_no_load(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, delay=0.01)
    model = ModelConfig(model=str(tmp_path))
    transports = [Recorded(ThreadTransport(model, EngineConfig(), build_fake_engine)) for _ in range(2)]

    async def scenario(engine: AsyncEngine) -> None:
        for i in range(PREFIX_SLACK + 1):
            await collect(engine, request(f"ends {i}", [5, i], 0, tokens=1))
            with pytest.raises(RequestError):
                await collect(engine, request(f"refused {i}", [], 0))
            async with aclosing(engine.stream(request(f"leaves {i}", [6, i], 0, tokens=100_000))) as events:
                await anext(events)
        await engine.status()  # comes after the last news of those that left
        await collect(engine, request("first", [7], tokens=1))
        assert transports[0].sent[-1] == "first" and not transports[1].sent
        staying = [engine.stream(request(f"stays {i}", [8, i], 0, 100_000)) for i in range(PREFIX_SLACK + 1)]
        for events in staying:
            await anext(events)
        await collect(engine, request("second", [7], tokens=1))
        assert transports[1].sent == ["second"]
        for events in staying:
            await events.aclose()

    play(transports, scenario)


def test_requests_go_to_the_least_loaded() -> None:
    router = Router(3)
    assert [router.place(f"r{i}", [i]) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    router.finish("r1")
    assert router.place("next", [9]) == 1
    assert router.owner("r1") is None
    assert [router.load(index) for index in range(3)] == [2, 2, 2]


def test_a_known_prefix_draws_until_its_replica_is_too_busy() -> None:
    router = Router(2)
    prompt = list(range(300))
    assert router.place("first", prompt) == 0
    assert router.place("elsewhere", [1]) == 1
    drawn = [router.place(f"more {i}", [*prompt, i]) for i in range(PREFIX_SLACK + 2)]
    assert drawn == [0] * (PREFIX_SLACK + 1) + [1]
    assert router.place("third", [*prompt[:128], 5]) == 0 or router.load(0) > router.load(1)


def test_pieces_stand_for_all_tokens_before_them() -> None:
    one, two = list(range(256)), [9, *range(1, 256)]
    assert len(prefix_pieces(one)) == 4
    assert not set(prefix_pieces(one)) & set(prefix_pieces(two))
    assert prefix_pieces(one[:200]) == prefix_pieces(one)[:3]


def test_memory_of_prefixes_is_bounded() -> None:
    router = Router(1)
    for start in range(3):
        router.place(f"r{start}", list(range(start, start + 64 * (REMEMBERED_PIECES // 2 + 10))))
    assert len(router._replicas[0].pieces) == REMEMBERED_PIECES


def test_an_llm_is_one_engine() -> None:
    with pytest.raises(ConfigError, match="data_parallel is for a server"):
        LLM("tiny", load_format="dummy", data_parallel=2)
