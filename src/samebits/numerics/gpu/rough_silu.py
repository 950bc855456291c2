"""The gated activation of bfloat16 by estimates, wherever their error cannot change the rounded result.

The device's own exponential and inverse are a few units off in the last places of float32, and the result keeps 8 of 24
digits. Only where the estimated product lies so near the middle between two bfloat16s that the exact one may lie on the
other side, the clause's own sequence is computed. The bits are the clause's for every pair of gate and up; saved
are half of the instructions, and with them energy. For NVIDIA's GPUs, where the error was looked at.
"""

from __future__ import annotations

import functools
import struct

import torch
import triton
import triton.language as tl

from samebits.numerics.cpu import coefficients as constants
from samebits.numerics.gpu.arithmetic import exp
from samebits.numerics.gpu.configuration import Launch, Start, start

LOWEST_GATE = -10.0
"""Below it the estimate's error grows, and the clause's sequence serves."""
ROUGHNESS = 15
"""Bound of the error of the estimated silu for every gate from LOWEST_GATE on, in units of the last place."""
MARGIN = 2 * ROUGHNESS + 2
"""Bound of the error of its product with up: a unit may count twice behind a power of two, and both products round."""
MIDDLE, DROPPED = 0x8000, 0xFFFF
"""Of the digits that bfloat16 drops."""
GATES = 1 << 16
CHECK_BLOCK = 1024


def literal(value: float) -> str:
    """A float32 in PTX."""
    return "0f" + struct.pack(">f", value).hex().upper()


ESTIMATE = f"""
    mul.rn.f32 x, {{gate}}, {literal(-constants.LOG2_E)};
    ex2.approx.ftz.f32 x, x;
    add.rn.f32 x, x, {literal(1.0)};
    rcp.approx.ftz.f32 x, x;
    mul.rn.f32 x, {{gate}}, x;
    mul.rn.f32 {{out}}, x, {{up}};
"""
"""out = nearly silu(gate) * up."""

DOUBT = f"""
    mov.b32 bits, {{out}};
    sub.s32 bits, bits, {MIDDLE - MARGIN};
    and.b32 bits, bits, {DROPPED};
    setp.le.u32 p, bits, {2 * MARGIN};
    or.pred doubt, doubt, p;
    setp.ltu.f32 p, {{gate}}, {literal(LOWEST_GATE)};
    or.pred doubt, doubt, p;
"""
"""Whether an estimate may round otherwise, or is of a gate that none is made for."""

EXACT = f"""
    neg.f32 x, {{gate}};
    setp.lt.f32 p, x, {literal(constants.EXP_LOWEST)};
    @p mov.f32 x, {literal(constants.EXP_LOWEST)};
    setp.gt.f32 p, x, {literal(constants.EXP_HIGHEST)};
    @p mov.f32 x, {literal(constants.EXP_HIGHEST)};
    fma.rn.f32 rounded, x, {literal(constants.LOG2_E)}, {literal(constants.ROUNDER)};
    mov.b32 bits, rounded;
    sub.s32 bits, bits, {constants.ROUNDER_BITS};
    sub.rn.f32 rounded, rounded, {literal(constants.ROUNDER)};
    fma.rn.f32 r, rounded, {literal(-constants.EXP_LN2_HIGH)}, x;
    fma.rn.f32 r, rounded, {literal(-constants.EXP_LN2_LOW)}, r;
    fma.rn.f32 x, r, {literal(constants.EXP_POLYNOMIAL[4])}, {literal(constants.EXP_POLYNOMIAL[3])};
    fma.rn.f32 x, x, r, {literal(constants.EXP_POLYNOMIAL[2])};
    fma.rn.f32 x, x, r, {literal(constants.EXP_POLYNOMIAL[1])};
    fma.rn.f32 x, x, r, {literal(constants.EXP_POLYNOMIAL[0])};
    mul.rn.f32 square, r, r;
    fma.rn.f32 x, square, x, r;
    add.rn.f32 x, x, {literal(1.0)};
    shr.s32 half, bits, 1;
    sub.s32 bits, bits, half;
    add.s32 half, half, 127;
    shl.b32 half, half, 23;
    mov.b32 square, half;
    mul.rn.f32 x, x, square;
    add.s32 bits, bits, 127;
    shl.b32 bits, bits, 23;
    mov.b32 square, bits;
    mul.rn.f32 x, x, square;
    add.rn.f32 x, x, {literal(1.0)};
    div.rn.f32 x, {{gate}}, x;
    mul.rn.f32 {{out}}, x, {{up}};
"""
"""out = silu(gate) * up, step by step as the clause has it (`arithmetic.exp`)."""

REGISTERS = ".reg .f32 x, rounded, r, square; .reg .b32 bits, half; .reg .pred p, doubt;"
PAIR = ({"out": "$0", "gate": "$2", "up": "$4"}, {"out": "$1", "gate": "$3", "up": "$5"})
"""Two elements at once, so that they share a branch."""


def of_both(text: str) -> str:
    return "".join(text.format(**names) for names in PAIR)


GATED = tl.constexpr(
    f"{{ {REGISTERS} setp.ne.s32 doubt, 0, 0; {of_both(ESTIMATE)} {of_both(DOUBT)} @!doubt bra DONE; "
    f"{of_both(EXACT)} DONE: }}"
)
ESTIMATED = tl.constexpr(f"{{ {REGISTERS} {of_both(ESTIMATE)} }}")


@triton.jit
def gated(gate, up):
    """silu(gate) * up of float32 that were bfloat16: a float32 that rounds to the bfloat16 of the clause's."""
    return tl.inline_asm_elementwise(
        GATED, "=f,=f,f,f,f,f", [gate, up], dtype=tl.float32, is_pure=True, pack=2
    )


@triton.jit
def errors_of_gates(gates, errors, LOWEST: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (blocks,): by how many units of the last place the estimated silu of each gate is off; 0 below LOWEST."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gates + place).to(tl.float32)
    exact = tl.div_rn(gate, 1.0 + exp(-gate))
    one = tl.full((BLOCK,), 1.0, tl.float32)
    rough = tl.inline_asm_elementwise(
        ESTIMATED, "=f,=f,f,f,f,f", [gate, one], dtype=tl.float32, is_pure=True, pack=2
    )
    off = tl.abs(exact.to(tl.int32, bitcast=True) - rough.to(tl.int32, bitcast=True))
    tl.store(errors + place, tl.where((gate >= LOWEST) & (gate == gate), off, 0))


def estimate_errors(device: torch.device, start: Start = start) -> torch.Tensor:
    """int32 [65,536]: the error of every gate's estimate."""
    gates = torch.arange(GATES, dtype=torch.int32, device=device).to(torch.int16).view(torch.bfloat16)
    errors = torch.empty(GATES, dtype=torch.int32, device=device)
    launch = Launch(warps=4, stages=1)
    grid = (GATES // CHECK_BLOCK,)
    start(errors_of_gates, grid, gates, errors, LOWEST=LOWEST_GATE, BLOCK=CHECK_BLOCK, launch=launch)
    return errors


def pairs_of_all_gates(seed: int, width: int, device: torch.device) -> torch.Tensor:
    """bfloat16 [65,536 / width, 2 width]: every gate there is, beside ups of any bits or of ordinary size."""
    gates = torch.arange(GATES, dtype=torch.int32, device=device).to(torch.int16).view(torch.bfloat16)
    generator = torch.Generator(device).manual_seed(seed)
    if seed % 2:
        ups = torch.randn(GATES, device=device, generator=generator).bfloat16()
    else:
        bits = torch.randint(-(1 << 15), 1 << 15, (GATES,), device=device, generator=generator)
        ups = bits.to(torch.int16).view(torch.bfloat16)
    return torch.cat([gates.view(-1, width), ups.view(-1, width)], 1)


@functools.cache
def estimates_are_near(device: torch.device) -> bool:
    """Whether this device's estimates keep their bound for every gate there is. Waits for the device."""
    return int(estimate_errors(device).max()) <= ROUGHNESS
