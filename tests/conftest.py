"""What holds for every test."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# The same examples at every run: a suite that watches over determinism is a function of the code alone.
settings.register_profile("samebits", derandomize=True, deadline=None)
settings.load_profile("samebits")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are marked `gpu` wait for a machine that has one."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)
