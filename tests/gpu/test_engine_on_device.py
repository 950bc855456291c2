"""The engine on a GPU: captured, eager, alone, in company, in either loop, the bits are the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from gpu_engine import answers, gpu_engine, mixed_requests, solo_answers

from samebits.engine.device.loop import DeviceLoop
from samebits.engine.device.runner import DeviceRunner
from samebits.engine.engine import Engine
from samebits.models.locate import SHAPES

pytestmark = pytest.mark.gpu


@pytest.fixture(
    scope="module", params=[("bundled", "safetensors"), ("tiny", "dummy")], ids=lambda pair: pair[0]
)
def captured(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = gpu_engine(*request.param)
    yield engine
    engine.close()


def runner_of(engine: Engine) -> DeviceRunner:
    assert isinstance(engine.loop, DeviceLoop) and isinstance(engine.loop.runner, DeviceRunner)
    return engine.loop.runner


@pytest.mark.parametrize("wishes", [False, True])
def test_alone_and_in_company(captured: Engine, wishes: bool) -> None:
    asked = mixed_requests(23, captured.facts.vocabulary, wishes)
    assert runner_of(captured).graphs.largest == 32
    captured.flush_cache()
    assert answers(captured, asked) == solo_answers(captured, asked)


@pytest.mark.parametrize("sizes", [{"cuda_graph_max_bs": 0}, {"loop": "simple"}, {"step_tokens": 64}])
def test_graph_and_eager_chunks_and_loops(captured: Engine, sizes: dict) -> None:
    load_format = "safetensors" if captured.facts.model == "bundled" else "dummy"
    other = gpu_engine(captured.facts.model, load_format, **sizes)
    for wishes in (False, True):
        asked = mixed_requests(23, captured.facts.vocabulary, wishes)
        captured.flush_cache()
        other.flush_cache()
        assert answers(captured, asked) == answers(other, asked)
    other.close()


def test_steps_that_end_inside_prompts() -> None:
    """Some 26,000 tokens of prompts, in steps of the default, of a power of two, and of few."""
    found = []
    for step_tokens in (0, 8192, 512):
        engine = gpu_engine("bundled", "safetensors", step_tokens=step_tokens)
        asked = [
            msgspec.structs.replace(one, prompt_ids=(one.prompt_ids * 300)[: 700 + 7 * number])
            for number, one in enumerate(mixed_requests(32, engine.facts.vocabulary, True, tokens=4))
        ]
        found.append(answers(engine, asked))
        engine.close()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("numerics", ["exact", "unpinned"])
def test_long_contexts_cut_into_many_splits(numerics: str) -> None:
    """More splits than programs, and then as many as there are programs. The profile that promises nothing folds what
    a program happens to hold, and is seen to differ: the inverse of every comparison in here."""
    engine = gpu_engine("bundled", "safetensors", numerics=numerics, attention_split_tokens=64)
    asked = [
        msgspec.structs.replace(one, prompt_ids=(one.prompt_ids * 300)[: 700 + 7 * number])
        for number, one in enumerate(mixed_requests(32, engine.facts.vocabulary, False, tokens=24))
    ]
    together, alone = answers(engine, asked), solo_answers(engine, asked)
    engine.close()
    assert (together == alone) == (numerics == "exact")


def test_replays_read_what_is_there_now(captured: Engine) -> None:
    """Stale inputs of a captured step hide behind identical replays: prompts, seeds and lengths change each time."""
    for salt in range(3):
        asked = mixed_requests(9 + salt, captured.facts.vocabulary, False)[salt:]
        captured.flush_cache()
        assert answers(captured, asked) == solo_answers(captured, asked)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes(dtype: str) -> None:
    engine = gpu_engine("tiny", "dummy", dtype=dtype, max_running=8, step_tokens=128)
    asked = mixed_requests(11, engine.facts.vocabulary, True)
    assert answers(engine, asked) == solo_answers(engine, asked)
    engine.close()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [
        (2, 2, 32),
        (4, 2, 32),
        (3, 1, 32),
        (4, 1, 32),
        (5, 1, 32),
        (6, 1, 32),
        (7, 1, 32),
        (8, 1, 32),
        (4, 2, 256),
        (5, 1, 80),
    ],
)
def test_shapes_of_heads(heads: int, kv_heads: int, head_dim: int, tmp_path: Path) -> None:
    """Ratios of query to key-value heads from 1 to 8, of which 3, 5, 6 and 7 divide no tile; heads as wide as they may
    be, and of a width that is no power of two."""
    config = json.loads((SHAPES / "tiny" / "config.json").read_text())
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_hidden_layers": 2}
    config["head_dim"] = head_dim
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine = gpu_engine(str(tmp_path), "dummy", max_running=16, step_tokens=64)
    asked = mixed_requests(13, engine.facts.vocabulary, False)
    assert answers(engine, asked) == solo_answers(engine, asked)
    engine.close()


def test_sleeping_device_changes_nothing(captured: Engine) -> None:
    """Random delays in the device's queue: the host is then far ahead, and reused buffers would show."""
    asked = mixed_requests(23, captured.facts.vocabulary, True)
    captured.flush_cache()
    expected = answers(captured, asked)
    runner = runner_of(captured)
    launch, generator = runner.launch, torch.Generator().manual_seed(0)

    class Delayed:
        def launch(self, step: object, before: object) -> object:
            torch.cuda._sleep(int(torch.randint(0, 3_000_000, (1,), generator=generator)))
            return launch(step, before)  # type: ignore[arg-type]

    captured.flush_cache()
    captured.loop.runner = Delayed()  # type: ignore[attr-defined]
    try:
        assert answers(captured, asked) == expected
    finally:
        captured.loop.runner = runner  # type: ignore[attr-defined]
