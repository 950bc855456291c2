"""The loop that drives a device, with the CPU for a device: every schedule gives the bits of the simple loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from device_engine import device_loop, with_padding_page
from small_engine import request, small_engine

from samebits.engine.device import runner as device_runner
from samebits.engine.device.graphs import DecodeGraph, DecodeGraphs, capture_graphs, decode_shape
from samebits.engine.device.inputs import StepInputs, StepShape
from samebits.engine.device.launched import Launched, QueuedOutcomes
from samebits.engine.device.loop import DeviceLoop
from samebits.engine.device.place import Captured
from samebits.engine.device.runner import DeviceRunner
from samebits.engine.device.sampling import PlainSamples
from samebits.errors import DeviceLostError
from samebits.numerics.cpu.operators import CpuOperators
from samebits.verify.simulation import simulate
from samebits.verify.simulation.schedules import scenario_of, simulated_model
from samebits.verify.simulation.simulate import Counts, run_scenario

LOOPS = {
    "eager": device_loop(),
    "captured": device_loop(largest_graph=8),
    "not ahead": device_loop(largest_graph=8, ahead=False),
}
SEEDS = [seed for seed in range(60) if seed % 21 != 20]
"""of the fake model"""


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(simulate.LOOPS, "device", LOOPS[request.param])  # type: ignore[misc]
    return request.param


def run(seed: int, name: str = "fake") -> Counts:
    """A seed's scenario under the device's loop; raises where a bit differs from the solo runs in the simple loop."""
    model = simulated_model(name)
    scenario = replace(scenario_of(seed), loop="device")  # type: ignore[arg-type]
    return run_scenario(scenario, with_padding_page(model))


def test_schedules_give_the_same_bits(loop: str) -> None:
    counts = Counts()
    for seed in SEEDS:
        counts.add(run(seed))
    assert counts.tokens > 500
    assert min(counts.preemptions, counts.cached_tokens, counts.lost_steps, counts.aborts) > 3


def test_schedules_of_a_real_model_give_the_same_bits(loop: str) -> None:
    assert run(20, "tiny").tokens + run(41, "tiny").tokens > 10


def test_steps_that_take_a_second_way_have_graphs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where operators ask for that, and the bits are the same; a step of either kind finds the graph of its kind."""
    monkeypatch.setitem(simulate.LOOPS, "device", LOOPS["captured"])  # type: ignore[misc]
    monkeypatch.setattr(
        CpuOperators,
        "second_way",
        lambda self, rows, contexts=None: rows > 1 and (contexts is None or contexts.mean() < 8),
    )
    replayed: list[StepShape] = []
    original = DecodeGraphs.get

    def get(self: DecodeGraphs, shape: StepShape) -> DecodeGraph | None:
        found = original(self, shape)
        assert found is not None and shape in dict(self.items())
        replayed.append(shape)
        return found

    monkeypatch.setattr(DecodeGraphs, "get", get)
    for seed in SEEDS[:40]:
        run(seed)
    assert {shape.second_way for shape in replayed} == {False, True}
    assert not any(shape.second_way for shape in replayed if shape.rows == 1)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulate.LOOPS, "device", LOOPS["captured"])  # type: ignore[misc]


def fails_somewhere() -> bool:
    for seed in SEEDS:
        try:
            run(seed)
        except Exception:
            return True
    return False


@pytest.mark.usefixtures("captured")
def test_a_stale_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inverse: a step that reads the token of the step before from the wrong place gives other bits."""
    original = StepInputs.fill

    def fill(self: StepInputs, shape: Any, batch: Any, unread: Any, *others: Any) -> None:
        original(self, shape, batch, [(row, (place + 1) % 4) for row, place in unread], *others)

    monkeypatch.setattr(StepInputs, "fill", fill)
    assert fails_somewhere()


@pytest.mark.usefixtures("captured")
def test_padding_in_a_page_of_a_request_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepInputs, "padding_slot", 1)
    assert fails_somewhere()


@pytest.mark.usefixtures("captured")
def test_parameters_of_a_neighbour_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = PlainSamples.read

    def read(self: PlainSamples) -> Any:
        if len(self.places) < 2:
            return original(self)
        return original(replace(self, places=[self.places[1], self.places[0], *self.places[2:]]))

    monkeypatch.setattr(PlainSamples, "read", read)
    assert fails_somewhere()


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("wrong", [lambda wanted: wanted[1:] + wanted[:1], lambda wanted: wanted])
def test_hidden_states_of_a_wrong_row_are_seen(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    """The last layer keeps the wanted rows alone; the inverse is that it keeps them in another order."""
    shortened: list[int] = []
    original = DeviceRunner._padded

    def padded(self: DeviceRunner, rows: list[int]) -> Any:
        shortened.append(len(rows))
        return original(self, wrong(list(rows)))

    monkeypatch.setattr(DeviceRunner, "_padded", padded)
    assert fails_somewhere() == (wrong([1, 2]) == [2, 1])
    assert len(shortened) > 10


def test_plain_and_general_sampling_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that could go the plain way are sent the other way."""
    monkeypatch.setitem(simulate.LOOPS, "device", LOOPS["captured"])  # type: ignore[misc]
    plain: list[bool] = []
    original = device_runner.is_plain
    monkeypatch.setattr(device_runner, "is_plain", lambda row: plain.append(original(row)) or False)
    for seed in SEEDS[:40]:
        run(seed)
    assert any(plain)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_lost_device_ends_the_engine(ahead: bool) -> None:
    """A device that failed computes nothing more: isolating requests on it would fail every one of them."""

    class LostDevice:
        def launch(self, step: Any, before: Any) -> Any:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    engine = small_engine()
    engine.loop = DeviceLoop(LostDevice(), ahead)
    engine.submit(request("one", [1, 2, 3]))
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        for _ in range(3):
            engine.step()


def test_graphs_are_given_up_before_the_ranks_are_left() -> None:
    """NCCL leaves no group while a graph holds its work."""
    done: list[str] = []

    class Graph:
        def __init__(self, name: str) -> None:
            self.name = name

        def reset(self) -> None:
            done.append(self.name)

    def captured(name: str) -> Any:
        return Captured(lambda: None, (), Graph(name))  # type: ignore[arg-type]

    engine = small_engine()
    loop = device_loop()(engine.runner)
    loop.runner.graphs = DecodeGraphs(  # type: ignore[attr-defined]
        {
            decode_shape(1): DecodeGraph(captured("forward of 1"), (captured("sampling of 1"),)),
            decode_shape(2): DecodeGraph(captured("2"), ()),
        }
    )
    engine.loop, engine.close_ranks = loop, lambda: done.append("ranks left")
    engine.close()
    assert done == ["forward of 1", "sampling of 1", "2", "ranks left"]
    assert loop.runner.graphs.get(decode_shape(1)) is None and not loop.runner.graphs.largest  # type: ignore[attr-defined]


def test_graphs_are_given_up_where_capturing_fails() -> None:
    released: list[str] = []

    class Graph:
        def reset(self) -> None:
            released.append("one")

    def capture(work: Any) -> Any:
        return Captured(lambda: None, work(), Graph())  # type: ignore[arg-type]

    def forward(shape: StepShape) -> Any:
        if shape.rows == fails_at:
            raise RuntimeError("a rank is gone")
        return torch.zeros(shape.rows), torch.zeros(shape.rows)

    def captured_graphs() -> DecodeGraphs:
        shapes = [decode_shape(bucket) for bucket in (1, 2, 4)]
        return capture_graphs(shapes, capture, forward, lambda *of: torch.zeros(1), lambda *news: None)

    fails_at = 2
    with pytest.raises(RuntimeError, match="a rank is gone"):
        captured_graphs()
    assert released == ["one"]
    fails_at = 0
    assert captured_graphs().largest == 4 and released == ["one"]


def test_graphs_are_given_up_on_a_device_that_failed() -> None:
    class Lost:
        def synchronize(self) -> None:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    given_up: list[str] = []

    class Runner:
        def close(self) -> None:
            given_up.append("graphs")

    loop = DeviceLoop(Runner())  # type: ignore[arg-type]
    loop._running = Launched(None, {}, QueuedOutcomes(), Lost())  # type: ignore[arg-type]
    with pytest.raises(torch.AcceleratorError):
        loop.close()
    assert given_up == ["graphs"]


def test_inputs_start_at_multiples_of_16_bytes() -> None:
    from device_engine import MOST_REQUESTS, power_of_two

    from samebits.engine.device.inputs import InputSizes, StepShape
    from samebits.engine.device.place import Place

    sizes = InputSizes(64, MOST_REQUESTS, MOST_REQUESTS, 7, 4, 9)
    inputs = StepInputs(Place(torch.device("cpu")), sizes)
    base = inputs.kept_tokens.data_ptr()
    for rows in (1, 2, 3, 33):
        values = inputs.on_device(StepShape(power_of_two(rows), rows, power_of_two(rows)))
        for name, view in vars(values).items():
            assert (view.data_ptr() - base) % 16 == 0, name
