"""Which decode steps are captured follows the settings alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from samebits.config import EngineConfig
from samebits.engine.device.build import graph_buckets, input_sizes
from samebits.engine.device.graphs import decode_shape
from samebits.engine.device.inputs import StepInputs
from samebits.engine.device.place import Place
from samebits.schedule.scheduler import SchedulerLimits


def largest(**sizes: int) -> int:
    return max(graph_buckets(EngineConfig(**sizes)), default=0)


def test_no_captured_step_is_larger_than_a_step_can_be() -> None:
    assert largest(max_running=256, step_tokens=8192) == 256
    assert largest(max_running=100, step_tokens=8192) == 128
    assert largest(max_running=256, step_tokens=64) == 64
    assert largest(max_running=256, step_tokens=48) == 64, "48 rows are padded to 64"
    assert largest(max_running=256, step_tokens=8192, cuda_graph_max_bs=30) == 32
    assert graph_buckets(EngineConfig(max_running=256, step_tokens=48, cuda_graph_max_bs=0)) == []
    assert list(graph_buckets(EngineConfig(max_running=3, step_tokens=512))) == [1, 2, 4]


@pytest.mark.parametrize("max_running", [1, 100, 200])
def test_long_page_tables_of_every_captured_step_fit_the_inputs(max_running: int) -> None:
    """A captured step has page tables of as many requests as its bucket has rows: 128 where 100 may run."""
    limits = SchedulerLimits(step_tokens=512, max_running=max_running, page_tokens=64, pages_per_request=640)
    sizes = input_sizes(limits, padding_page=1000)
    engine = EngineConfig(max_running=max_running, step_tokens=limits.step_tokens)
    shapes = [decode_shape(bucket) for bucket in graph_buckets(engine)]
    inputs = StepInputs(Place(torch.device("cpu")), sizes)
    for shape in shapes:
        values = inputs.on_device(shape)
        assert values.page_table.shape == (shape.rows, 640)
        assert values.row_faults.shape == (shape.rows,)
    if max_running > 1:
        # The inverse: with room for as many requests as may run, the largest does not fit.
        small = StepInputs(Place(torch.device("cpu")), replace(sizes, requests=max_running))
        with pytest.raises(RuntimeError, match="invalid for input of size"):
            small.on_device(shapes[-1])
