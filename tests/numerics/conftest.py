"""Operators shared by the numerics tests, so that kernels are loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernel_ir import kernel_modules

from samebits.numerics.cpu.operators import CpuOperators


@pytest.fixture(scope="session")
def operators() -> Iterator[CpuOperators]:
    made = CpuOperators(threads=2)
    yield made
    made.close()


@pytest.fixture(scope="session")
def single() -> Iterator[CpuOperators]:
    made = CpuOperators(threads=1)
    yield made
    made.close()


@pytest.fixture(scope="session")
def crowded() -> Iterator[CpuOperators]:
    """More threads than cores: tasks end in any order."""
    made = CpuOperators(threads=5)
    yield made
    made.close()


@pytest.fixture(scope="session")
def modules(tmp_path_factory) -> dict[str, str]:
    """Every kernel's intermediate representation, by name."""
    return kernel_modules(tmp_path_factory.mktemp("modules"))
