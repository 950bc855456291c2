"""Wrong arithmetic, planted in the kernels' intermediate representation, compiled for this machine and run."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import llvmlite.binding as llvm
import numpy as np
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

from samebits.numerics.cpu.coefficients import EXP_POLYNOMIAL, LOG_POLYNOMIAL

Change = Callable[[str], str]
"""Of a module's text."""
TASK = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)


def split_fused(text: str) -> str:
    """Every explicit fused multiply-add as a product and a sum."""
    for kind, name in (("<16 x float>", "v16f32"), ("float", "f32")):
        body = f"%p = fmul {kind} %a, %b\n%s = fadd {kind} %p, %c\nret {kind} %s"
        head = f"define internal {kind} @split.{name}({kind} %a, {kind} %b, {kind} %c)"
        text = text.replace(f"@llvm.fma.{name}(", f"@split.{name}(")
        text = re.sub(rf"^declare .*@split\.{name}\(.*$", f"{head} {{\n{body}\n}}", text, flags=re.MULTILINE)
    return text


def contracted(text: str) -> str:
    """Every plain product that feeds a sum fused into it, as a C compiler does on Arm by default."""
    return re.sub(r"= (fmul|fadd|fsub) ", r"= \1 contract ", text)


def _indices(lanes: range) -> str:
    return "<8 x i32> <" + ", ".join(f"i32 {lane}" for lane in lanes) + ">"


def folded_by_neighbours(text: str) -> str:
    """Lanes 2 j and 2 j + 1 are joined first, where the contract joins j and j + 8."""
    text = text.replace(_indices(range(8)), _indices(range(0, 16, 2)))
    return text.replace(_indices(range(8, 16)), _indices(range(1, 16, 2)))


def _constant(number: float) -> str:
    """A float32 as a module's text writes it: the bits of the equal float64."""
    return f"0x{int(np.float64(np.float32(number)).view(np.uint64)):016X}"


def _next_constant(text: str, number: float) -> str:
    """A constant replaced by the next larger float32."""
    larger = np.nextafter(np.float32(number), np.float32(np.inf))
    return text.replace(_constant(number), _constant(float(larger)))


def other_exp(text: str) -> str:
    """One coefficient of the exponential is one unit in its last place larger."""
    return _next_constant(text, EXP_POLYNOMIAL[0])


def other_log(text: str) -> str:
    """The same of the logarithms."""
    return _next_constant(text, LOG_POLYNOMIAL[0])


@dataclass(frozen=True)
class NativeCode:
    """Machine code of one kernel; `engine` owns the memory."""

    call: ctypes._CFuncPtr
    engine: llvm.ExecutionEngine


@functools.cache
def compile_native(module_text: str) -> NativeCode:
    """Optimise a kernel's module for this machine, as numba does, and load it."""
    rtsys.initialize(cpu_target.target_context)  # makes the process's and numba's functions known by name
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=2, jit=True
    )
    module = llvm.parse_assembly(module_text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    llvm.create_pass_builder(machine, options).getModulePassManager().run(
        module, llvm.create_pass_builder(machine, options)
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    (entry,) = [f.name for f in module.functions if f.name.startswith("cfunc.") and not f.is_declaration]
    return NativeCode(TASK(engine.get_function_address(entry)), engine)


@dataclass(frozen=True)
class NativePool:
    """Stands where operators expect their pool: runs other code in the place of the host's, in the caller's
    floating-point environment. `codes` holds it by the address of the host's code."""

    codes: Mapping[int, NativeCode]
    threads: int = 1

    def run(self, task: int, arguments: tuple[int, ...], tasks: int, share: bool = True) -> None:
        words = np.array(arguments, np.int64)
        for index in range(tasks):
            self.codes[task].call(words.ctypes.data, index)

    def close(self) -> None:
        """Nothing to end."""
