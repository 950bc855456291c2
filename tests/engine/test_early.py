"""What an engine's process does before it imports torch: the GPU's context, and the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.device import early
from samebits.engine.garbage import import_for_good, settle


class FakeDriver:
    """Keeps the names of the functions that are called."""

    def __init__(self, status: int = 0) -> None:
        self.called: list[str] = []
        self._status = status

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> int:
            self.called.append(name)
            return self._status

        return call


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver()
    monkeypatch.setattr(early.ctypes, "CDLL", lambda name: made)
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")
    return made


def opened(model: ModelConfig, engine: EngineConfig) -> bool:
    thread = early.open_early(model, engine)
    if thread is not None:
        thread.join(10)
    return thread is not None


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_first_gpus_context_is_made(device: str, driver: FakeDriver) -> None:
    pytest.importorskip("triton")
    assert opened(ModelConfig(device=device), EngineConfig())
    assert driver.called == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


def test_nothing_more_is_asked_of_a_driver_that_refuses(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    refusing = FakeDriver(status=3)
    monkeypatch.setattr(early.ctypes, "CDLL", lambda name: refusing)
    assert opened(ModelConfig(), EngineConfig())
    assert refusing.called == ["cuInit"]


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        (ModelConfig(device="cpu"), EngineConfig()),
        (ModelConfig(), EngineConfig(data_parallel=2)),  # which GPU is its own is not settled yet
    ],
)
def test_a_process_that_may_take_another_device_opens_none(
    model: ModelConfig, engine: EngineConfig, driver: FakeDriver
) -> None:
    assert not opened(model, engine)
    assert driver.called == []


def test_without_triton_the_cpu_serves(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "find_spec", lambda name: None)
    assert not opened(ModelConfig(), EngineConfig())


def test_without_a_driver_there_is_nothing_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "DRIVER", "libno-such-driver.so.1")
    assert not opened(ModelConfig(), EngineConfig())


@pytest.fixture
def collector() -> Iterator[None]:
    """As it was, afterwards."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_what_an_import_made_is_left_alone(collector: None) -> None:
    gc.unfreeze()
    assert import_for_good("samebits.errors").__name__ == "samebits.errors"
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_a_failed_import_leaves_the_collector_at_work(collector: None) -> None:
    with pytest.raises(ModuleNotFoundError):
        import_for_good("samebits.no_such_module")
    assert gc.isenabled()


def test_a_settled_process_looks_at_less(collector: None) -> None:
    gc.unfreeze()
    settle()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] > 10_000
    assert gc.isenabled()
