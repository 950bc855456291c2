"""How a kernel is launched. No launch configuration may change a bit."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from samebits.numerics.gpu.launch import TYPE_NAMES, KernelSource, load, pointer


@dataclass(frozen=True)
class Launch:
    """Warps of a program and stages of its software pipeline."""

    warps: int = 4
    stages: int = 2


POINTERS = {dtype: pointer(dtype) for dtype in TYPE_NAMES}


def kind_of(argument: Any) -> str:
    """Triton's type of a run-time argument: a tensor's pointer, an int32 or a float32."""
    if isinstance(argument, Tensor):
        return POINTERS[argument.dtype]
    if isinstance(argument, int):
        return "i32"
    return "fp32"


@functools.cache
def on_nvidia() -> bool:
    """Whether this process's GPU is NVIDIA's, whose own instructions a kernel may name."""
    return torch.version.cuda is not None and torch.cuda.is_available()


@functools.cache
def dependent_launches() -> bool:
    """Whether this process's GPU can set up a kernel while the one ahead still runs: NVIDIA's from Hopper on."""
    return on_nvidia() and torch.cuda.get_device_capability() >= (9, 0)


def named_source(
    kernel: Any, arguments: tuple[str, ...], constants: dict[str, Any], launch: Launch
) -> KernelSource:
    """One binary: types of the run-time arguments in order, values of the constants by name. A kernel that has the
    constant DEPENDENT waits by itself for the one ahead, where the device can do that."""
    names = kernel.arg_names[len(arguments) :]
    dependent = "DEPENDENT" in names and dependent_launches()
    values = tuple(dependent if name == "DEPENDENT" else constants[name] for name in names)
    return KernelSource(kernel, arguments, values, launch.warps, launch.stages, dependent)


def source_of(
    kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], launch: Launch
) -> KernelSource:
    """The binary that `start` launches: of the arguments' values, only the types choose it."""
    return named_source(kernel, tuple(map(kind_of, arguments)), constants, launch)


class Start(Protocol):
    """What becomes of a launch."""

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, launch: Launch, **constants: Any
    ) -> None:
        """`kernel` with run-time arguments in order, constants by name."""


def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, launch: Launch, **constants: Any) -> None:
    """Launch `kernel` on the current stream."""
    x, y, z = (*grid, 1, 1)[:3]
    load(source_of(kernel, arguments, constants, launch)).launch((x, y, z), *arguments)


@dataclass(frozen=True)
class Noted:
    """Stands in for `start` where it is handed to what launches, and launches nothing, so that what is computed is
    void."""

    sources: dict[KernelSource, None] = field(default_factory=dict)
    """the binaries that would have been launched, in order"""

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, launch: Launch, **constants: Any
    ) -> None:
        self.sources[source_of(kernel, arguments, constants, launch)] = None
