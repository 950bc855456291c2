"""How a kernel is launched. No launch configuration may change a bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from samebits.numerics.gpu.launch import KernelSource, load, pointer


@dataclass(frozen=True)
class Launch:
    """Warps of a program and stages of its software pipeline."""

    warps: int = 4
    stages: int = 2


def kind_of(argument: Any) -> str:
    """Triton's type of a run-time argument: a tensor's pointer, an int32 or a float32."""
    if isinstance(argument, Tensor):
        return pointer(argument.dtype)
    if isinstance(argument, int):
        return "i32"
    return "fp32"


def named_source(
    kernel: Any, arguments: tuple[str, ...], constants: dict[str, Any], launch: Launch
) -> KernelSource:
    """One binary: types of the run-time arguments in order, values of the constants by name."""
    values = tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
    return KernelSource(kernel, arguments, values, launch.warps, launch.stages)


def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, launch: Launch, **constants: Any) -> None:
    """Launch `kernel` on the current stream: run-time arguments in order, constants by name. Of the arguments'
    values, only the types choose the binary."""
    x, y, z = (*grid, 1, 1)[:3]
    source = named_source(kernel, tuple(map(kind_of, arguments)), constants, launch)
    load(source).launch((x, y, z), *arguments)
