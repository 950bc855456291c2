"""Arrays inside kernels, over the addresses that a launch passes."""

from __future__ import annotations

from numba import carray
from numba.core import types
from numba.core.types.misc import CPointer
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from samebits.numerics.cpu.kernel import inlined_variant
from samebits.numerics.cpu.lanes import load_int64


def _make_pointer(element: types.Type):
    @intrinsic
    def pointer(typingctx, address):
        """The address as a pointer to elements."""

        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return signature(CPointer(element), types.int64), codegen

    return pointer


def _make_array(element: types.Type):
    pointer = _make_pointer(element)

    @inlined_variant(element.name)
    def array(arguments, word, size):
        """The array of `size` elements (a number or a shape) at the address in a word of the arguments."""
        return carray(pointer(load_int64(arguments, word)), size)

    return array


int32_array = _make_array(types.int32)
int64_array = _make_array(types.int64)
float32_array = _make_array(types.float32)
