"""Engines whose device is the CPU: the code that drives a GPU, under any schedule, compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from samebits.engine.device.inputs import InputSizes
from samebits.engine.device.loop import DeviceLoop
from samebits.engine.device.place import Place, rerun
from samebits.engine.device.runner import DeviceRunner
from samebits.engine.runner import Runner
from samebits.verify.simulation.fake_runner import FakeRunner
from samebits.verify.simulation.sabotage import SabotagedRunner
from samebits.verify.simulation.simulate import SimulatedModel

MOST_REQUESTS = 64
MOST_ROWS = 1024


def power_of_two(rows: int) -> int:
    """Buckets that hardly ever fit, so that most steps have padding rows."""
    return 1 << max(rows - 1, 0).bit_length()


def with_padding_page(model: SimulatedModel) -> SimulatedModel:
    """The model with one KV page more than its requests may own."""
    return replace(model, make_runner=lambda pages, page_tokens: model.make_runner(pages + 1, page_tokens))


def device_loop(largest_graph: int = 0, ahead: bool = True) -> Callable[[Runner], DeviceLoop]:
    """Makes a loop around a runner that was made with a page for padding."""

    def make(runner: Runner) -> DeviceLoop:
        assert isinstance(runner, SabotagedRunner)
        pages, page_tokens = kv_size(runner.inner)
        sizes = InputSizes(
            rows=MOST_ROWS,
            requests=MOST_REQUESTS,
            sampled=MOST_REQUESTS,
            pages_per_request=pages,
            page_tokens=page_tokens,
            padding_page=pages - 1,
        )
        device_runner = DeviceRunner(runner, Place(runner.operators.device), sizes, power_of_two)
        if largest_graph:
            buckets = [1 << exponent for exponent in range(largest_graph.bit_length())]
            device_runner.capture(buckets, rerun, lambda *news: None)
        return DeviceLoop(device_runner, ahead)

    return make


def kv_size(runner: Runner) -> tuple[int, int]:
    """(pages, tokens in a page) of a runner's storage."""
    if isinstance(runner, FakeRunner):
        return runner.pages, runner.page_tokens
    layer = runner.kv[0]  # type: ignore[attr-defined]
    return layer.keys.shape[0], layer.page_tokens
