"""What the garbage collector of an engine's or a server's process leaves alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from samebits.engine.garbage import import_for_good, settle


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
