"""Fixed pieces of a thread's stack for a kernel's intermediate values."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from samebits.numerics.cpu.lanes import FLOAT, I64


def make_scratch(count: int):
    """An intrinsic that gives the address of `count` uninitialised float32 on the stack, 64-byte aligned."""

    @intrinsic
    def scratch(typingctx):
        def codegen(context, builder, sig, args):
            with builder.goto_entry_block():
                slot = builder.alloca(ir.ArrayType(FLOAT, count))
            slot.align = 64
            return builder.ptrtoint(slot, I64)

        return signature(types.int64), codegen

    return scratch
