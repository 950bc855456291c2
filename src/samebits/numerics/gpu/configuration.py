"""How a kernel is launched. No launch configuration may change a bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from samebits.numerics.gpu.launch import KernelSource, descriptor, load, pointer


@dataclass(frozen=True)
class Launch:
    """Warps of a program and stages of its software pipeline."""

    warps: int = 4
    stages: int = 2


def kind_of(argument: Any) -> str:
    """Triton's type of a run-time argument: a tensor's pointer, a tensor descriptor, an int32 or a float32."""
    if isinstance(argument, Tensor):
        return pointer(argument.dtype)
    if isinstance(argument, int):
        return "i32"
    if isinstance(argument, float):
        return "fp32"
    return descriptor(argument.base.dtype, argument.block_shape)


def source_of(
    kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], launch: Launch
) -> KernelSource:
    """The one binary that serves these arguments; of their values, only the types matter."""
    names = kernel.arg_names[len(arguments) :]
    values = tuple(constants[name] for name in names)
    return KernelSource(kernel, tuple(map(kind_of, arguments)), values, launch.warps, launch.stages)


def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, launch: Launch, **constants: Any) -> None:
    """Launch `kernel` on the current stream: run-time arguments in order, constants by name."""
    x, y, z = (*grid, 1, 1)[:3]
    load(source_of(kernel, arguments, constants, launch)).launch((x, y, z), *arguments)
