"""What holds for every test."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The same examples at every run: a suite that watches over determinism is a function of the code alone.
settings.register_profile("samebits", derandomize=True, deadline=None)
settings.load_profile("samebits")

# A shell starts its background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C would hang.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_is_left_as_found() -> Iterator[None]:
    """Commands run in this process set the level of the package's logger."""
    logger = logging.getLogger("samebits")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate = propagate
    logger.handlers[:] = handlers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are marked `gpu` wait for a machine that has one."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)
