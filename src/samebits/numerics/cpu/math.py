"""exp, log and log1p in float32: own polynomials with explicit fused multiply-adds, never the platform's libm.

Each function is written once, over LLVM values, and used for one float32 or sixteen lanes; both forms do the
same operations, so they give the same bits. Errors (measured over every float32, stated in `contract.md`) are
below one unit in the last place. Results of NaN are NaN of unspecified sign and payload.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from samebits.numerics.cpu.coefficients import (
    EXP_HIGHEST,
    EXP_LN2_HIGH,
    EXP_LN2_LOW,
    EXP_LOWEST,
    EXP_POLYNOMIAL,
    LOG2_E,
    LOG_LN2_HIGH,
    LOG_LN2_LOW,
    LOG_POLYNOMIAL,
    MANTISSA_BITS,
    ROUNDER,
    ROUNDER_BITS,
    SQRT_HALF_BITS,
)
from samebits.numerics.cpu.lanes import FLOAT, I32, LANES, emit_fma, lanes16


@dataclass(frozen=True)
class Number:
    """An LLVM value (float or int32, one or sixteen lanes) with Python operators that emit one instruction each."""

    builder: ir.IRBuilder
    value: ir.Value

    def _lift(self, other: Number | float | int) -> ir.Value:
        return other.value if isinstance(other, Number) else self.constant(other).value

    def constant(self, number: float | int) -> Number:
        kind = self.value.type
        if isinstance(kind, ir.VectorType):
            return Number(self.builder, ir.Constant(kind, [number] * kind.count))
        return Number(self.builder, ir.Constant(kind, number))

    def _is_float(self) -> bool:
        kind = self.value.type
        return (kind.element if isinstance(kind, ir.VectorType) else kind) == FLOAT

    def _emit(self, name: str, other: Number | float | int) -> Number:
        method = ("f" if self._is_float() else "") + name
        return Number(self.builder, getattr(self.builder, method)(self.value, self._lift(other)))

    def __add__(self, other: Number | float | int) -> Number:
        return self._emit("add", other)

    def __sub__(self, other: Number | float | int) -> Number:
        return self._emit("sub", other)

    def __mul__(self, other: Number | float | int) -> Number:
        return self._emit("mul", other)

    def __truediv__(self, other: Number | float | int) -> Number:
        return self._emit("div", other)

    def fma(self, factor: Number | float, addend: Number | float) -> Number:
        """self * factor + addend, rounded once."""
        arguments = self.value, self._lift(factor), self._lift(addend)
        return Number(self.builder, emit_fma(self.builder, *arguments))

    def shift_left(self, bits: int) -> Number:
        return Number(self.builder, self.builder.shl(self.value, self._lift(bits)))

    def shift_right(self, bits: int) -> Number:
        """Arithmetic shift."""
        return Number(self.builder, self.builder.ashr(self.value, self._lift(bits)))

    def mask(self, bits: int) -> Number:
        return Number(self.builder, self.builder.and_(self.value, self._lift(bits)))

    def _cast(self, method: str, element: ir.Type) -> Number:
        kind = self.value.type
        target = ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element
        return Number(self.builder, getattr(self.builder, method)(self.value, target))

    def bits(self) -> Number:
        return self._cast("bitcast", I32)

    def from_bits(self) -> Number:
        return self._cast("bitcast", FLOAT)

    def to_float(self) -> Number:
        return self._cast("sitofp", FLOAT)

    def where(self, comparison: str, limit: Number | float | int, then: Number | float | int) -> Number:
        """`then` in the lanes where `self comparison limit` holds (never, for NaN), else self."""
        return self.choose(comparison, limit, then, self)

    def choose(
        self, comparison: str, limit: Number | float | int, then: Number | float | int, other: Number
    ) -> Number:
        """`then` in the lanes where `self comparison limit` holds (never, for NaN), else `other`."""
        compare = self.builder.fcmp_ordered if self._is_float() else self.builder.icmp_signed
        condition = compare(comparison, self.value, self._lift(limit))
        return Number(self.builder, self.builder.select(condition, other._lift(then), other.value))


def power_of_two(exponent: Number) -> Number:
    """2**exponent for int32 exponents of normal results."""
    return (exponent + 127).shift_left(23).from_bits()


def exp_number(x: Number) -> Number:
    """exp: -inf gives 0, results above the range inf, subnormal results are rounded once."""
    x = x.where("<", EXP_LOWEST, EXP_LOWEST).where(">", EXP_HIGHEST, EXP_HIGHEST)
    rounded = x.fma(LOG2_E, ROUNDER)
    exponent = rounded.bits() - ROUNDER_BITS
    count = rounded - ROUNDER
    r = count.fma(-EXP_LN2_LOW, count.fma(-EXP_LN2_HIGH, x))
    polynomial = x.constant(EXP_POLYNOMIAL[-1])
    for coefficient in EXP_POLYNOMIAL[-2::-1]:
        polynomial = polynomial.fma(r, coefficient)
    value = (r * r).fma(polynomial, r) + 1.0
    # Two factors: their product alone may overflow or be subnormal. For NaN, the exponent is arbitrary.
    half = exponent.shift_right(1)
    return value * power_of_two(half) * power_of_two(exponent - half)


def log_series(f: Number) -> tuple[Number, Number, Number]:
    """(s, f*f/2, R) with log(1 + f) = f - (f*f/2 - s * (f*f/2 + R)) for 1 + f between sqrt(1/2) and sqrt(2)."""
    s = f / (f + 2.0)
    z = s * s
    remainder = z.constant(LOG_POLYNOMIAL[-1])
    for coefficient in LOG_POLYNOMIAL[-2::-1]:
        remainder = remainder.fma(z, coefficient)
    return s, f * f * 0.5, z * remainder


def log_number(x: Number) -> Number:
    """log: zero of either sign gives -inf, negative numbers NaN, +inf gives +inf; subnormals are right."""
    tiny = 1.1754943508222875e-38
    scaled = x.choose("<", tiny, x * 33554432.0, x)
    shifted = scaled.bits() - SQRT_HALF_BITS
    exponent = shifted.shift_right(23)
    exponent = Number(x.builder, x.choose("<", tiny, exponent - 25, exponent).value)
    f = (shifted.mask(MANTISSA_BITS) + SQRT_HALF_BITS).from_bits() - 1.0
    s, half_square, remainder = log_series(f)
    count = exponent.to_float()
    tail = s.fma(half_square + remainder, count * LOG_LN2_LOW)
    value = count.fma(LOG_LN2_HIGH, tail - half_square + f)
    value = x.choose("==", float("inf"), x, value)
    value = x.choose("<", 0.0, float("nan"), value)
    value = x.choose("==", 0.0, float("-inf"), value)
    return Number(
        x.builder, x.builder.select(x.builder.fcmp_unordered("uno", x.value, x.value), x.value, value.value)
    )


def log1p_number(x: Number) -> Number:
    """log(1 + x): -1 gives -inf, below -1 NaN, +inf gives +inf; exact x for tiny |x|."""
    u = x + 1.0
    shifted = u.bits() - SQRT_HALF_BITS
    exponent = shifted.shift_right(23)
    reduced = (shifted.mask(MANTISSA_BITS) + SQRT_HALF_BITS).from_bits() - 1.0
    # What the rounding of 1 + x lost, over u; nothing is reduced where the exponent is 0.
    lost = exponent.choose(">", 1, (u - x).constant(1.0) - (u - x), x - (u - 1.0)) / u
    lost = exponent.choose(">", 24, 0.0, lost)
    lost = exponent.choose("==", 0, 0.0, lost)
    f = exponent.choose("==", 0, x, reduced)
    s, half_square, remainder = log_series(f)
    count = exponent.to_float()
    tail = s.fma(half_square + remainder, count.fma(LOG_LN2_LOW, lost))
    value = count.fma(LOG_LN2_HIGH, tail - half_square + f)
    magnitude = x.bits().mask(0x7FFFFFFF)
    value = magnitude.choose("<", 0x33000000, x, value)  # below 2**-25
    value = x.choose("==", float("inf"), x, value)
    value = x.choose("<", -1.0, float("nan"), value)
    value = x.choose("==", -1.0, float("-inf"), value)
    return Number(
        x.builder, x.builder.select(x.builder.fcmp_unordered("uno", x.value, x.value), x.value, value.value)
    )


def _as_intrinsic(emit):
    @intrinsic
    def function(typingctx, x):
        def codegen(context, builder, sig, args):
            return emit(Number(builder, args[0])).value

        return (signature(x, x), codegen) if x in (types.float32, lanes16) else None

    return function


exp32 = _as_intrinsic(exp_number)
log32 = _as_intrinsic(log_number)
log1p32 = _as_intrinsic(log1p_number)

assert LANES == 16
