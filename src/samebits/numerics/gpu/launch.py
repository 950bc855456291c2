"""Compiling and launching Triton kernels so that a proof can name what runs.

A kernel is compiled once from an explicit description: argument types, constants, options. The compiled binary
is then launched directly. Triton's own call path is not used, because it looks at each argument's value and may
pick another binary (divisible by 16, equal to 1, aligned or not), which no proof has seen.

What holds for every kernel:

- `enable_fp_fusion=False`: a fused multiply-add exists only where the kernel writes `tl.fma`.
- Run-time integers are not specialised: one binary for all values.
- Pointers are 16-byte aligned; a launch with another pointer is refused.
- Parameters come in this order: run-time arguments, then constants (`tl.constexpr`).

With `TRITON_INTERPRET=1` the same description runs in Triton's interpreter on CPU tensors.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.interpreter import InterpretedFunction

from samebits.errors import NumericsError

ALIGNMENT = 16
"""Bytes: every pointer that a kernel is given is a multiple of this."""

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
"""Architectures for which portable kernels are compiled ahead of time."""

PORTABLE = tuple(TARGETS)
NVIDIA = ("sm_80", "sm_90", "sm_100")
TENSOR_MAPS = ("sm_90", "sm_100")
"""Architectures with a copy engine for tensor descriptors."""

TYPE_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
"""torch dtype -> Triton's name of it in a signature."""


GLUON_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
"""torch dtype -> Gluon's, of what tensor cores multiply."""


def pointer(dtype: torch.dtype) -> str:
    """Signature of a pointer to `dtype`: `*bf16`."""
    return f"*{TYPE_NAMES[dtype]}"


def descriptor(dtype: torch.dtype, block: Sequence[int]) -> str:
    """Signature of a tensor descriptor that moves blocks of `block` elements of `dtype`."""
    return f"tensordesc<{TYPE_NAMES[dtype]}{list(block)}>"


def swizzled_descriptor(dtype: torch.dtype, block: Sequence[int]) -> str:
    """As `descriptor`, for a kernel in Gluon, whose signature names the layout in shared memory too: the one that
    Hopper's products read."""
    layout = gl.NVMMASharedLayout.get_default_for(list(block), GLUON_TYPES[dtype])
    return f"tensordesc<{TYPE_NAMES[dtype]}{list(block)},{layout!r}>"


@dataclass(frozen=True)
class KernelSource:
    """One binary before compilation: a kernel function and everything that its compiler is told.

    `arguments`: Triton types of the run-time arguments in order (`*bf16`, `i32`, `tensordesc<...>`); `constants`:
    values of the constexpr parameters, in their order, which follow the run-time arguments. A constant may be
    another kernel function.
    """

    function: Any
    arguments: tuple[str, ...]
    constants: tuple[Any, ...]
    warps: int = 4
    stages: int = 3
    dependent: bool = False
    """programmatic dependent launch: the kernel may start before the one ahead of it ends, and waits by itself"""
    registers: int = 0
    """of a thread at the kernel's start, for kernels that deal them out among their warps; 0: as many as there are"""

    @property
    def name(self) -> str:
        return self.function.__name__

    def options(self, target: GPUTarget) -> dict[str, Any]:
        """What the compiler is told beside types and constants."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}
        if target.backend == "cuda":
            options["launch_pdl"] = self.dependent
            if self.registers:
                options["maxnreg"] = self.registers
        return options

    def compile(self, target: GPUTarget) -> Any:
        """Triton's compiled kernel for `target`, from its cache on disk where it is there. Needs no GPU."""
        names = self.function.arg_names
        if len(names) != len(self.arguments) + len(self.constants):
            raise NumericsError(
                f"kernel {self.name} has the parameters {names}; described are {len(self.arguments)} arguments and "
                f"{len(self.constants)} constants"
            )
        types = dict(zip(names, self.arguments, strict=False)) | {
            name: "constexpr" for name in names[len(self.arguments) :]
        }
        constants = dict(zip(names[len(self.arguments) :], self.constants, strict=True))
        aligned = {
            (index,): [["tt.divisibility", ALIGNMENT]]
            for index, kind in enumerate(self.arguments)
            if kind.startswith("*")
        }
        language = GluonASTSource if self.function.is_gluon() else ASTSource
        source = language(self.function, types, constants, aligned)
        return triton.compile(source, target=target, options=self.options(target))


@dataclass(frozen=True)
class Binary:
    """One compiled kernel on this process's GPU, launched without any further choice."""

    source: KernelSource
    digest: str
    """sha256 of the machine code, the name under which a proof is kept"""
    compiled: Any = field(repr=False, compare=False)

    @property
    def handle(self) -> int:
        """The driver's handle of the loaded function, as a captured graph's nodes name it."""
        self.compiled._init_handles()
        return int(self.compiled.function)

    def launch(self, grid: tuple[int, int, int], *arguments: Any) -> None:
        """Run on the current stream of the current device. Tensors must be aligned to 16 bytes."""
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.data_ptr() % ALIGNMENT:
                raise NumericsError(
                    f"kernel {self.source.name}: a tensor of shape {tuple(argument.shape)} does not start at a "
                    f"multiple of {ALIGNMENT} bytes; copy it into its own allocation"
                )
        kernel = self.compiled
        run = kernel.run
        stream = torch.cuda.current_stream().cuda_stream
        run(
            *grid, stream, kernel.function, kernel.packed_metadata, None, None, None,
            *arguments, *self.source.constants,
        )  # fmt: skip


@dataclass(frozen=True)
class Interpreted:
    """A kernel in Triton's interpreter: for tests of the logic on CPU, never for service."""

    source: KernelSource
    digest: str = "interpreted"

    def launch(self, grid: tuple[int, int, int], *arguments: Any) -> None:
        options = {"num_warps": self.source.warps, "num_stages": self.source.stages}
        self.source.function[grid](*arguments, *self.source.constants, **options)


def current_target() -> GPUTarget:
    """The GPU of this process, as the compiler knows it."""
    return triton.runtime.driver.active.get_current_target()


def target_name() -> str:
    """Architecture of this process's GPU: `sm_90`, `gfx942`."""
    target = current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def know_compiler() -> None:
    """Have Triton digest its own files, a part of every kernel's key on disk. It does so once a process; but of threads
    that compile their first kernel at the same time, each digests all of them."""
    if current := getattr(triton.runtime.cache, "triton_key", None):
        current()


@functools.cache
def load(source: KernelSource) -> Binary | Interpreted:
    """The kernel of `source` on this process's GPU, compiled on first use, or in the interpreter."""
    if isinstance(source.function, InterpretedFunction):
        return Interpreted(source)
    return _loaded_once(source)


_under_way: dict[KernelSource, Future[Binary]] = {}
_guard = threading.Lock()


def _loaded_once(source: KernelSource) -> Binary:
    """What a thread asks for while another compiles it, it waits for."""
    with _guard:
        first = source not in _under_way
        future = _under_way.setdefault(source, Future())
    if first:
        try:
            future.set_result(_loaded(source))
        except BaseException as error:
            future.set_exception(error)
        finally:
            with _guard:
                del _under_way[source]
    return future.result()


def _loaded(source: KernelSource) -> Binary:
    compiled = source.compile(current_target())
    # The C code through which Triton calls a kernel takes longer to compile than many a kernel, and Triton does so at
    # the first launch, one after another. Made here it is found on disk then; what fails here is met again there.
    with suppress(Exception):
        triton.runtime.driver.active.launcher_cls(compiled.src, compiled.metadata)
    return Binary(source, hashlib.sha256(compiled.kernel).hexdigest(), compiled)


def blocks(length: int, block: int) -> int:
    """How many blocks of `block` cover `length`."""
    return -(-length // block)
