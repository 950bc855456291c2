"""What the arithmetic needs of the host: a fused multiply-add, and the default floating-point environment.

A library that sets flush-to-zero in a thread (torch.set_flush_denormal, a shared object built with
-ffast-math) changes results there; every kernel therefore runs inside `enter` and `leave`.
"""

from __future__ import annotations

import functools
import platform
import re

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import types
from numba.core.registry import cpu_target
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from samebits.errors import NumericsError
from samebits.numerics.cpu.lanes import I32, I64, POINTER

# Round to nearest, no flush-to-zero, no denormals-are-zero, all exceptions masked.
MXCSR_DEFAULT = 0x1F80
FPCR_DEFAULT = 0


def machine() -> str:
    """`x86_64`, `aarch64`, or the platform's own name for anything else."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}.get(name, name)


FUSED_PROBE = """
define <8 x float> @fused(<8 x float> %a, <8 x float> %b, <8 x float> %c) {
  %d = call <8 x float> @llvm.fma.v8f32(<8 x float> %a, <8 x float> %b, <8 x float> %c)
  ret <8 x float> %d
}
define <8 x float> @widened(<8 x half> %a) {
  %b = fpext <8 x half> %a to <8 x float>
  ret <8 x float> %b
}
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
"""


@functools.cache
def has_fused_instructions() -> bool:
    """Whether numba's target (its environment variables included) fuses and widens without calling a library."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=name, features=features, opt=2)
    text = target.emit_assembly(llvm.parse_assembly(FUSED_PROBE))
    return "call" not in text and re.search(r"\bbl\b", text) is None


def require_fma() -> None:
    """Refuse a host whose compiled code would emulate the fused multiply-add, or whose control word is unknown.

    Raises NumericsError.
    """
    kind = machine()
    if kind not in ("x86_64", "aarch64"):
        raise NumericsError(
            f"numerics profile exact: no CPU kernels for the architecture {platform.machine()!r}"
        )
    host_lacks = kind == "x86_64" and not llvm.get_host_cpu_features().get("fma", False)
    if host_lacks or not has_fused_instructions():
        raise NumericsError(
            "numerics profile exact: this CPU, or NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, lack the fused "
            "multiply-add (FMA) or the widening of float16 (F16C)"
        )


def declare(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    existing = builder.module.globals.get(name)
    return existing or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _emit_read_control(builder: ir.IRBuilder) -> ir.Value:
    if machine() == "aarch64":
        return builder.call(declare(builder, "llvm.aarch64.get.fpcr", I64, []), [])
    slot = builder.alloca(I32)
    builder.call(declare(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [POINTER]), [slot])
    return builder.zext(builder.load(slot, typ=I32), I64)


def _emit_write_control(builder: ir.IRBuilder, value: ir.Value) -> None:
    if machine() == "aarch64":
        builder.call(declare(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [I64]), [value])
        return
    slot = builder.alloca(I32)
    builder.store(builder.trunc(value, I32), slot)
    builder.call(declare(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [POINTER]), [slot])


@intrinsic
def read_control(typingctx):
    """This thread's floating-point control word (MXCSR or FPCR)."""

    def codegen(context, builder, sig, args):
        return _emit_read_control(builder)

    return signature(types.int64), codegen


@intrinsic
def write_control(typingctx, value):
    """Set this thread's floating-point control word."""

    def codegen(context, builder, sig, args):
        _emit_write_control(builder, args[0])
        return context.get_dummy_value()

    return signature(types.void, types.int64), codegen


@intrinsic
def default_control(typingctx):
    """The control word that every kernel runs under."""

    def codegen(context, builder, sig, args):
        return ir.Constant(I64, FPCR_DEFAULT if machine() == "aarch64" else MXCSR_DEFAULT)

    return signature(types.int64), codegen
