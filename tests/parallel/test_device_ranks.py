"""The loop of a device over several ranks, with threads for ranks and the CPU for their devices."""

from __future__ import annotations

import json
import pickle
import queue
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from device_engine import power_of_two
from gpu_engine import answers, mixed_requests
from rank_threads import ThreadGroup, on_ranks

import samebits.models
from samebits.cache.pages import PagePool
from samebits.config import ModelConfig
from samebits.engine.decoder_runner import DecoderRunner
from samebits.engine.device.forward import StepRanks
from samebits.engine.device.inputs import InputSizes
from samebits.engine.device.loop import DeviceLoop
from samebits.engine.device.place import Place, rerun
from samebits.engine.device.rank_steps import RankSteps
from samebits.engine.device.runner import DeviceRunner
from samebits.engine.engine import Engine
from samebits.engine.loops import SimpleLoop
from samebits.engine.messages import EngineFacts
from samebits.engine.rank_worker import DeviceStep, device_order, step_order
from samebits.models.load import load_model
from samebits.models.shards import ModelShard
from samebits.numerics.collectives.group import SOLO, Group
from samebits.numerics.cpu.operators import CpuOperators
from samebits.sampling_params import SamplingDefaults
from samebits.schedule.scheduler import Scheduler, SchedulerLimits

PAGES, PAGE_TOKENS, STEP_TOKENS, MAX_RUNNING = 40, 64, 96, 8
SIZES = InputSizes(128, MAX_RUNNING, MAX_RUNNING, PAGES, PAGE_TOKENS, PAGES)
BUCKETS = (1, 2, 4, 8)
SHAPES = Path(samebits.models.__file__).parent / "shapes"
Answers = dict[str, bytes]


def shard_of(profile: str, group: Group, model: str = "tiny") -> DecoderRunner:
    operators = CpuOperators(threads=1, profile=profile, group=group)
    config = ModelConfig(model=model, load_format="dummy", numerics=profile, device="cpu")
    loaded = load_model(config, operators, shard=ModelShard(group.rank, group.size))
    kv = operators.allocate_kv(loaded.spec.layers, PAGES + 1, PAGE_TOKENS, loaded.spec.heads)
    return DecoderRunner(loaded.spec, loaded.weights, operators, loaded.rope, kv)


def engine_of(runner: DecoderRunner, loop: Any) -> Engine:
    facts = EngineFacts(
        model="tiny",
        family="qwen3",
        vocabulary=runner.vocabulary,
        context_length=1024,
        kv_tokens=PAGES * PAGE_TOKENS,
        eos_token_ids=[],
        sampling_defaults=SamplingDefaults(),
        default_seed=None,
        profile=runner.operators.profile,
        promises_bits=True,
        fingerprint="",
        plan={},
    )
    limits = SchedulerLimits(STEP_TOKENS, MAX_RUNNING, PAGE_TOKENS, PAGES)
    return Engine(facts, runner, Scheduler(limits, PagePool(PAGES)), loop, max_waiting=100)


def asked(vocabulary: int, wishes: bool) -> list[Any]:
    return mixed_requests(11, vocabulary, wishes, tokens=6)


def alone(profile: str, wishes: bool, model: str = "tiny") -> Answers:
    """One rank, one step after another."""
    runner = shard_of(profile, SOLO, model)
    return answers(engine_of(runner, SimpleLoop(runner)), asked(runner.vocabulary, wishes))


def over_ranks(
    profile: str, size: int, captured: bool, wishes: bool, ahead: bool = True, model: str = "tiny"
) -> Answers:
    """The device's loop, whose orders travel as they do between processes."""
    orders: list[queue.Queue[bytes | None]] = [queue.Queue() for _ in range(size)]

    def tell(order: Any) -> None:
        for own in orders[1:]:
            own.put(ForkingPickler.dumps(device_order(order)))

    def lead(group: ThreadGroup) -> Answers:
        shard = shard_of(profile, group, model)
        runner = DeviceRunner(
            shard, Place(shard.operators.device), SIZES, power_of_two, StepRanks(group, tell)
        )
        try:
            if captured:
                runner.capture(BUCKETS, rerun, lambda *news: None)
            engine = engine_of(shard, DeviceLoop(runner, ahead))
            return answers(engine, asked(shard.vocabulary, wishes))
        finally:
            for own in orders[1:]:
                own.put(None)

    def follow(group: ThreadGroup) -> Answers:
        shard = shard_of(profile, group, model)
        steps = RankSteps(shard, shard.spec.hidden, group, SIZES)
        if captured:
            steps.capture(BUCKETS, rerun)
        while (told := orders[group.rank].get(timeout=60)) is not None:
            order = pickle.loads(told)
            if isinstance(order, DeviceStep):
                order = step_order(order)
            steps.follow(order)
        return {}

    return on_ranks(size, lambda group: follow(group) if group.rank else lead(group))[0]


@pytest.mark.parametrize("wishes", [False, True])
@pytest.mark.parametrize(
    ("size", "captured", "ahead"), [(2, True, True), (2, False, True), (2, True, False), (4, True, True)]
)
def test_tp_invariant_has_the_bits_of_one_rank(size: int, captured: bool, ahead: bool, wishes: bool) -> None:
    assert over_ranks("tp-invariant", size, captured, wishes, ahead) == alone("tp-invariant", wishes)


@pytest.fixture
def eight_heads(tmp_path: Path) -> str:
    """A model of 8 query heads over 2 of keys and values, which four ranks each hold, and a vocabulary of which most
    ranks hold nothing but padding."""
    config = json.loads((SHAPES / "tiny" / "config.json").read_text())
    config |= {"num_attention_heads": 8, "num_hidden_layers": 2, "vocab_size": 1283}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_eight_ranks_have_the_bits_of_one_rank(eight_heads: str) -> None:
    expected = alone("tp-invariant", True, eight_heads)
    assert over_ranks("tp-invariant", 8, True, True, model=eight_heads) == expected
    assert over_ranks("exact", 8, True, True, model=eight_heads) != expected


def test_exact_is_the_same_captured_and_eager_and_not_that_of_one_rank() -> None:
    captured = over_ranks("exact", 2, True, True)
    assert captured == over_ranks("exact", 2, False, True)
    assert captured != alone("exact", True)


def test_tokens_of_the_step_before_come_from_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inverse: ranks that believe what stands in their own buffers compute other bits."""

    def own(ranks: StepRanks, values: Any) -> Any:
        return values

    monkeypatch.setattr(StepRanks, "from_first", own)
    assert over_ranks("tp-invariant", 2, True, False) != alone("tp-invariant", False)
