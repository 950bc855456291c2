"""Sixteen float32 lanes as one numba value, and the few primitive operations that kernels are written in.

Every operation here is exactly one IEEE-754 operation a lane (round to nearest even), or a copy of bits.
LLVM is free to split the sixteen lanes over whatever registers the host has; it is not free to contract,
reassociate or approximate, because no fast-math flag is ever set. `fma` is the only fused operation.

An address is an int64; offsets count elements of the type that is loaded or stored.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
POINTER = ir.PointerType()


STORAGE_ELEMENT = {"float32": FLOAT, "float16": HALF, "bfloat16": I16}


class LanesType(types.Type):
    """Sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="lanes16")


lanes16 = LanesType()
VECTOR = ir.VectorType(FLOAT, LANES)


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, VECTOR)


# Arithmetic operators on the type


def _declare_operator(python_operator: Callable, method: str) -> None:
    @infer_global(python_operator)
    class LanesOperator(AbstractTemplate):
        key = python_operator

        def generic(self, args, kws):
            if len(args) == 2 and args[0] == lanes16 and args[1] == lanes16:
                return signature(lanes16, lanes16, lanes16)
            return None

    @lower_builtin(python_operator, lanes16, lanes16)
    def lower(context, builder, sig, args):
        return getattr(builder, method)(*args)


_declare_operator(operator.add, "fadd")
_declare_operator(operator.sub, "fsub")
_declare_operator(operator.mul, "fmul")
_declare_operator(operator.truediv, "fdiv")


# Emission helpers, shared with the intrinsics of other files


def llvm_name(kind: ir.Type) -> str:
    """The suffix that LLVM gives to an overloaded intrinsic: f32, f64, v16f32, v16i32."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{llvm_name(kind.element)}"
    if isinstance(kind, ir.IntType):
        return f"i{kind.width}"
    return {HALF: "f16", FLOAT: "f32", DOUBLE: "f64"}[kind]


def call_overloaded(builder: ir.IRBuilder, name: str, *values: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic whose operands and result have one type."""
    kind = values[0].type
    function_type = ir.FunctionType(kind, [kind] * len(values))
    full_name = f"{name}.{llvm_name(kind)}"
    function = builder.module.globals.get(full_name)
    if function is None:
        function = ir.Function(builder.module, function_type, full_name)
    return builder.call(function, values)


def emit_fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return call_overloaded(builder, "llvm.fma", a, b, c)


def emit_splat(builder: ir.IRBuilder, scalar: ir.Value, count: int = LANES) -> ir.Value:
    kind = ir.VectorType(scalar.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
    mask = ir.Constant(ir.VectorType(I32, count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask)


def element_pointer(
    builder: ir.IRBuilder, address: ir.Value, offset: ir.Value | None, kind: ir.Type
) -> ir.Value:
    pointer = builder.inttoptr(address, POINTER)
    if offset is None:
        return pointer
    return builder.gep(pointer, [offset], source_etype=kind)


def emit_load(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.Type, align: int) -> ir.Value:
    value = builder.load(pointer, typ=kind)
    value.align = align
    return value


def emit_load_weights(builder: ir.IRBuilder, pointer: ir.Value, storage: str, count: int) -> ir.Value:
    """Load `count` weights of a storage dtype and widen them to float32, exactly."""
    if storage == "float32":
        return emit_load(builder, pointer, ir.VectorType(FLOAT, count), 4)
    if storage == "float16":
        half = emit_load(builder, pointer, ir.VectorType(HALF, count), 2)
        return builder.fpext(half, ir.VectorType(FLOAT, count))
    words = emit_load(builder, pointer, ir.VectorType(I16, count), 2)
    wide = builder.zext(words, ir.VectorType(I32, count))
    shift = ir.Constant(ir.VectorType(I32, count), [16] * count)
    return builder.bitcast(builder.shl(wide, shift), ir.VectorType(FLOAT, count))


# Primitive operations


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding; float32, float64 or lanes."""
    sig = signature(a, a, b, c)

    def codegen(context, builder, sig, args):
        return emit_fma(builder, *args)

    return (sig, codegen) if a == b == c and (a == lanes16 or isinstance(a, types.Float)) else None


@intrinsic
def splat(typingctx, value):
    """All lanes equal to a float32."""

    def codegen(context, builder, sig, args):
        return emit_splat(builder, args[0])

    return (signature(lanes16, value), codegen) if value == types.float32 else None


@intrinsic
def load(typingctx, address, offset):
    """Sixteen float32 at address + offset elements; no alignment is needed."""

    def codegen(context, builder, sig, args):
        return emit_load(builder, element_pointer(builder, args[0], args[1], FLOAT), VECTOR, 4)

    return signature(lanes16, types.int64, types.int64), codegen


@intrinsic
def store(typingctx, address, offset, value):
    """Store sixteen float32 at address + offset elements."""

    def codegen(context, builder, sig, args):
        pointer = element_pointer(builder, args[0], args[1], FLOAT)
        builder.store(args[2], pointer).align = 4
        return context.get_dummy_value()

    return signature(types.void, types.int64, types.int64, lanes16), codegen


@intrinsic
def load_masked(typingctx, address, offset, count, fill):
    """The first `count` (0 to 16) lanes from memory, the others `fill`; memory beyond is not read."""

    def codegen(context, builder, sig, args):
        address, offset, count, fill = args
        pointer = element_pointer(builder, address, offset, FLOAT)
        mask_type = ir.VectorType(ir.IntType(1), LANES)
        function_type = ir.FunctionType(VECTOR, [POINTER, I32, mask_type, VECTOR])
        name = "llvm.masked.load.v16f32.p0"
        function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
        mask = _lanes_below(builder, count)
        return builder.call(function, [pointer, ir.Constant(I32, 4), mask, emit_splat(builder, fill)])

    return signature(lanes16, types.int64, types.int64, types.int64, types.float32), codegen


@intrinsic
def store_masked(typingctx, address, offset, value, count):
    """Store the first `count` (0 to 16) lanes; memory beyond is not written."""

    def codegen(context, builder, sig, args):
        address, offset, value, count = args
        pointer = element_pointer(builder, address, offset, FLOAT)
        mask_type = ir.VectorType(ir.IntType(1), LANES)
        function_type = ir.FunctionType(ir.VoidType(), [VECTOR, POINTER, I32, mask_type])
        name = "llvm.masked.store.v16f32.p0"
        function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
        builder.call(function, [value, pointer, ir.Constant(I32, 4), _lanes_below(builder, count)])
        return context.get_dummy_value()

    return signature(types.void, types.int64, types.int64, lanes16, types.int64), codegen


@intrinsic
def load_widened(typingctx, storage, address, offset):
    """Sixteen weights of a storage dtype (a literal name), widened exactly to float32."""
    name = storage.literal_value if isinstance(storage, types.StringLiteral) else None
    if name is None:
        return None

    def codegen(context, builder, sig, args):
        pointer = element_pointer(builder, args[1], args[2], STORAGE_ELEMENT[name])
        return emit_load_weights(builder, pointer, name, LANES)

    return signature(lanes16, storage, types.int64, types.int64), codegen


def _lanes_below(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    index_type = ir.VectorType(I32, LANES)
    limit = emit_splat(builder, builder.trunc(count, I32))
    return builder.icmp_signed("<", ir.Constant(index_type, list(range(LANES))), limit)


@intrinsic
def keep_below(typingctx, value, count, fill):
    """The first `count` lanes of a value, the others `fill`."""

    def codegen(context, builder, sig, args):
        value, count, fill = args
        return builder.select(_lanes_below(builder, count), value, emit_splat(builder, fill))

    return signature(lanes16, lanes16, types.int64, types.float32), codegen


@intrinsic
def larger(typingctx, a, b):
    """a > b ? a : b, for float32 or lanes."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return (signature(a, a, b), codegen) if a == b and a in (lanes16, types.float32) else None


def fold_halves(builder: ir.IRBuilder, value: ir.Value, combine: Callable) -> ir.Value:
    """Fold sixteen lanes by halving (lane j with lane j + width / 2) down to a scalar."""
    width = LANES
    while width > 1:
        width //= 2
        undefined = ir.Constant(value.type, ir.Undefined)
        index = ir.VectorType(I32, width)
        low = builder.shuffle_vector(value, undefined, ir.Constant(index, list(range(width))))
        high = builder.shuffle_vector(value, undefined, ir.Constant(index, list(range(width, 2 * width))))
        value = combine(low, high)
    return builder.extract_element(value, ir.Constant(I32, 0))


@intrinsic
def sum_lanes(typingctx, value):
    """The contract's fold: 16 -> 8 -> 4 -> 2 -> 1 lanes, lane j += lane j + width / 2."""

    def codegen(context, builder, sig, args):
        return fold_halves(builder, args[0], builder.fadd)

    return signature(types.float32, lanes16), codegen


@intrinsic
def largest_lane(typingctx, value):
    """The largest lane (any order gives the same value when no lane is NaN)."""

    def codegen(context, builder, sig, args):
        def larger_of(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return fold_halves(builder, args[0], larger_of)

    return signature(types.float32, lanes16), codegen


@intrinsic
def all_finite(typingctx, value):
    """Whether every lane is finite."""

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(I32, LANES)
        bits = builder.bitcast(args[0], vector)
        exponent = builder.and_(bits, ir.Constant(vector, [0x7F800000] * LANES))
        bad = builder.icmp_unsigned("==", exponent, ir.Constant(vector, [0x7F800000] * LANES))
        packed = builder.bitcast(bad, ir.IntType(LANES))
        return builder.icmp_unsigned("==", packed, ir.Constant(ir.IntType(LANES), 0))

    return signature(types.boolean, lanes16), codegen


# Scalars in memory


def _scalar_access(kind: ir.Type, numba_type: types.Type):
    size = kind.width // 8 if isinstance(kind, ir.IntType) else 4

    @intrinsic
    def load_scalar(typingctx, address, offset):
        def codegen(context, builder, sig, args):
            return emit_load(builder, element_pointer(builder, args[0], args[1], kind), kind, size)

        return signature(numba_type, types.int64, types.int64), codegen

    @intrinsic
    def store_scalar(typingctx, address, offset, value):
        def codegen(context, builder, sig, args):
            pointer = element_pointer(builder, args[0], args[1], kind)
            builder.store(args[2], pointer).align = size
            return context.get_dummy_value()

        return signature(types.void, types.int64, types.int64, numba_type), codegen

    return load_scalar, store_scalar


load_float, store_float = _scalar_access(FLOAT, types.float32)
load_int32, store_int32 = _scalar_access(I32, types.int32)
load_int64, store_int64 = _scalar_access(I64, types.int64)
load_byte, store_byte = _scalar_access(I8, types.uint8)


@intrinsic
def float_bits(typingctx, value):
    """A float32's bits as int32."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], I32)

    return signature(types.int32, types.float32), codegen


@intrinsic
def float_from_bits(typingctx, bits):
    """The float32 whose bits are the low half of an int64."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(builder.trunc(args[0], I32), FLOAT)

    return signature(types.float32, types.int64), codegen
