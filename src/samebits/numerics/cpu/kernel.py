"""Kernels: functions compiled on first use to C functions `void task(int64 arguments, int64 index)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from numba import njit
from numba.core import types
from numba.core.ccallback import CFunc

from samebits.numerics.cpu.kernel_cache import KernelCache

# No fast-math flag: LLVM may neither contract nor reassociate. The numpy error model keeps division IEEE.
COMPILE_OPTIONS = {"error_model": "numpy", "fastmath": False, "boundscheck": False}
TASK_SIGNATURE = ((types.int64, types.int64), types.void)

inlined = njit(nogil=True, **COMPILE_OPTIONS)
"""Decorator of functions that only kernels call; they are compiled into each kernel."""


def inlined_variant(variant: str) -> Callable[[Callable], Callable]:
    """`inlined` for a function inside a factory, of which there are several: `variant` tells them apart.

    Kernels that different processes compiled meet in one process through the cache on disk, and their linker
    takes two helpers of one name for the same code.
    """

    def decorate(function: Callable) -> Callable:
        function.__qualname__ = f"{function.__qualname__}.{variant}"
        return inlined(function)

    return decorate


def compiled(function: Callable) -> Callable:
    """Decorator of functions that Python calls: compiled without the GIL at the first call, kept on disk."""
    dispatcher = njit(nogil=True, **COMPILE_OPTIONS)(function)
    dispatcher._cache = KernelCache(function)
    return dispatcher


@dataclass(frozen=True)
class Kernel:
    """A task function before or after its compilation."""

    function: Callable[[int, int], None]

    @cached_property
    def _callback(self) -> CFunc:
        callback = CFunc(self.function, TASK_SIGNATURE, locals={}, options=dict(COMPILE_OPTIONS))
        callback._cache = KernelCache(self.function)
        callback.compile()
        return callback

    @cached_property
    def address(self) -> int:
        """Address of the machine code; compiles it, or takes it from the cache on disk."""
        return self._callback.address

    def prepare(self) -> int:
        """Compile or load the kernel; returns its address."""
        return self.address

    def assembly(self) -> str:
        """The machine code as text; only of a kernel that was compiled in this process."""
        return self._callback._library.get_asm_str()
