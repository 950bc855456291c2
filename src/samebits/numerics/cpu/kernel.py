"""Kernels: functions compiled on first use to C functions `void task(int64 arguments, int64 index)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from numba import cfunc, njit

COMPILE_OPTIONS = {"cache": True, "error_model": "numpy", "fastmath": False, "boundscheck": False}
TASK_SIGNATURE = "void(int64, int64)"

inlined = njit(nogil=True, **COMPILE_OPTIONS)
"""Decorator of functions that kernels call."""


@dataclass(frozen=True)
class Kernel:
    """A task function before or after its compilation."""

    function: Callable[[int, int], None]

    @cached_property
    def _compiled(self):
        return cfunc(TASK_SIGNATURE, **COMPILE_OPTIONS)(self.function)

    @cached_property
    def address(self) -> int:
        """Address of the machine code; compiles it, or takes it from the cache on disk."""
        return self._compiled.address

    def assembly(self) -> str:
        return "\n".join(self._compiled._library.get_asm_str().splitlines())
