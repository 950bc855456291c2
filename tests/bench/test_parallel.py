"""What `samebits bench parallel` makes of what it measures, and what it keeps of a run that is cut."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("triton")

from samebits.bench import decode
from samebits.bench.device_engine import stage_seconds
from samebits.bench.parallel import (
    Course,
    Measured,
    contender,
    exchanging,
    floor_milliseconds,
    measure,
    table_rows,
)
from samebits.config import ModelConfig
from samebits.errors import ConfigError
from samebits.models.load import read_model_files
from samebits.models.weights import expected_shapes


def test_names_of_contenders() -> None:
    one = contender("unpinned+one-shot@1", 2)
    assert (one.profile, one.method, one.degree, one.sums) == ("unpinned", "one-shot", 1, "exact")
    assert contender("unpinned", 4).sums == "nccl" and contender("unpinned", 4).degree == 4
    assert contender("tp-invariant", 2).sums == "tp-invariant"
    with pytest.raises(ConfigError, match="a degree follows"):
        contender("exact@two", 2)


def test_floor_of_a_rank_is_its_share() -> None:
    files = read_model_files(ModelConfig(model="llama-3.1-70b-shaped", load_format="dummy"))
    shapes = expected_shapes(files.spec, files.family.names)
    assert 140e9 < sum(2 * math.prod(shape) for shape in shapes.values()) < 142e9
    whole, half = (floor_milliseconds(files.spec, shapes, 32, 1024, degree) for degree in (1, 2))
    assert half == pytest.approx(whole / 2)
    wide = replace(files.spec, dtype="float32")
    assert floor_milliseconds(wide, shapes, 32, 1024, 1) == pytest.approx(2 * whole)
    assert decode.floor_milliseconds(files.spec, shapes, 32, 1024) == pytest.approx(whole)
    assert decode.floor_milliseconds(wide, shapes, 32, 1024) == pytest.approx(2 * whole)


def test_kernels_that_exchange() -> None:
    kernels = {
        "one_shot": 1.0,
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL": 2.0,
        "tile_gemm": 4.0,
        "meet_alone": 8.0,
    }
    assert exchanging(kernels) == 11.0


class FakeProcess:
    """Answers as a contender's process does. One that is slower by `factor`, and ends after so many calls."""

    def __init__(self, factor: float, calls: int = 1 << 30) -> None:
        self.factor, self.calls = factor, calls
        self.start_seconds, self.stages = 1.0, {"loading weights": 1.0}
        self.running, self.is_open = 0, False

    def _called(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def decode_together(self, count: int, prompt_tokens: int) -> None:
        self.running += count

    def context(self) -> int:
        return 1024 + self.running

    def timed_steps(self, steps: int) -> dict[str, float]:
        self._called()
        return {"wall": self.factor * (10 + self.running), "busy": 1.0, "idle": 0.0}

    def kernel_milliseconds(self, steps: int) -> dict[str, float]:
        return {"one_shot": 1.0, "tile_gemm": 3.0}

    def prefill(self, count: int, prompt_tokens: int, step_tokens: int) -> dict[str, float]:
        steps = count * prompt_tokens / step_tokens
        return {"seconds": self.factor * steps, "steps": steps, "busy": 900.0, "queueing": 10.0}

    def prefill_kernels(self, count: int, prompt_tokens: int, step_tokens: int) -> dict[str, float]:
        return {"two_shot": 200.0, "tile_gemm": 700.0}


def raced(processes: dict[str, Any], at_once: int, keep: Any) -> Measured:
    """What is known once these have been measured, or one of them has ended."""
    model = ModelConfig(model="llama-3.1-70b-shaped", load_format="dummy")
    contenders = [contender(name, 4) for name in processes]
    files = read_model_files(model)
    measured = Measured(files.spec, expected_shapes(files.spec, files.family.names), contenders)
    course = Course((32, 1), 3, 2, (2048, 8192), at_once)
    for group in course.groups(contenders):
        measure(
            {one.name: processes[one.name] for one in group}, course, measured, lambda line: keep(measured)
        )
    return measured


@pytest.mark.parametrize("at_once", [0, 1])
def test_figures_of_a_run(at_once: int) -> None:
    processes = {"exact": FakeProcess(1.0), "unpinned": FakeProcess(1.5)}
    measured = raced(processes, at_once, lambda measured: None)
    measured.alone = {batch: {"exact": 10.0, "nccl": 20.0} for batch in (1, 32)}
    found = json.loads(json.dumps(measured.figures()))
    assert [row["batch"] for row in found["batches"]] == [1, 32]
    for row in found["batches"]:
        wall = 10 + row["batch"]
        assert row["milliseconds"] == {"exact": wall, "unpinned": 1.5 * wall}
        assert row["time against exact"] == {"exact": 1, "unpinned": 1.5}
        sums = {name: floor["sums"] for name, floor in row["floor milliseconds"].items()}
        assert sums == {"exact": 1.6, "unpinned": 3.2}  # two of each of 80 layers
        assert row["exchange share"] == {"exact": 0.25, "unpinned": 0.25}
        assert row["context"]["exact"] == 1024 + row["batch"]
    for row in found["prompts"]:
        size = row["most tokens in a step"]
        assert row["tokens per second"] == {"exact": size, "unpinned": round(size / 1.5)}
        assert row["milliseconds a step"]["unpinned"]["wall"] == 1500
        assert row["milliseconds a step"]["exact"]["exchanging kernels"] == 200
        assert list(row["kernels, milliseconds a step"]["exact"]) == ["tile_gemm", "two_shot"]
    assert len(table_rows(found)) == 1 + 2 * 2 + 2 * 2
    assert not any(process.is_open for process in processes.values())


def test_a_run_that_is_cut_leaves_what_it_measured() -> None:
    """The second contender ends in the middle of its second batch size."""
    kept: list[dict[str, Any]] = []
    processes = {"exact": FakeProcess(1.0), "unpinned": FakeProcess(1.5, calls=6)}
    with pytest.raises(KeyboardInterrupt):
        raced(processes, 1, lambda measured: kept.append(measured.figures()))
    last = json.loads(json.dumps(kept[-1]))
    assert [list(row["milliseconds"]) for row in last["batches"]] == [["exact", "unpinned"], ["exact"]]
    assert "sums" not in last["batches"][0]["floor milliseconds"]["exact"]
    assert table_rows(last)[1][5] == ""


def test_stages_of_a_start() -> None:
    begun = [("weights", 3.0), ("proofs", 4.0), ("weights", 6.0)]
    assert stage_seconds(begun, 1.0, 6.5) == {"before any stage": 2.0, "weights": 1.5, "proofs": 2.0}
