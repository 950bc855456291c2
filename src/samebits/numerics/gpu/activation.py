"""The gated activation: silu(gate) * up, silu(g) = g / (1 + exp(-g)), every step rounded to float32."""

from __future__ import annotations

import functools
import logging

import torch
import triton
import triton.language as tl
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.gpu import rough_silu
from samebits.numerics.gpu.arithmetic import exp
from samebits.numerics.gpu.checks import ACTIVATIONS, check_tensor, result
from samebits.numerics.gpu.configuration import Launch, Start, start
from samebits.numerics.gpu.dependent import wait_ahead
from samebits.numerics.gpu.rough_silu import gated

BLOCK = 1024
SILU_LAUNCH = Launch(warps=4, stages=1)
MANY_ROWS = 1024
"""From here on estimates serve where they do: a prefill step is short of energy, which instructions cost."""
PROOF_TURNS = 16

log = logging.getLogger(__name__)


@triton.jit
def silu_mul_rows(
    gate_up, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROUGH: tl.constexpr, DEPENDENT: tl.constexpr
):
    """Grid (rows, blocks of a row). ROUGH: by estimates where they round as the clause does."""
    wait_ahead(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = gate_up + row * (2 * WIDTH) + columns
    gate = tl.load(place, mask=columns < WIDTH, other=0.0).to(tl.float32)
    up = tl.load(place + WIDTH, mask=columns < WIDTH, other=0.0).to(tl.float32)
    if ROUGH:
        value = gated(gate, up)
    else:
        value = tl.div_rn(gate, 1.0 + exp(-gate)) * up
    tl.store(y + row * WIDTH + columns, value.to(y.dtype.element_ty), mask=columns < WIDTH)


@functools.cache
def _estimates_proven(device: torch.device) -> bool:
    """Whether estimates keep their bound on this device, and the kernel with them gives the bits of the one without:
    for every gate, beside `PROOF_TURNS` ups. Waits for the device."""
    if not rough_silu.estimates_are_near(device):
        log.info(
            "%s: its estimates are too rough for the gated activation; the clause's sequence serves", device
        )
        return False
    for seed in range(PROOF_TURNS):
        pairs = rough_silu.pairs_of_all_gates(seed, BLOCK, device)
        exact, rough = (
            silu_mul_as(pairs, None, SILU_LAUNCH, kind).view(torch.int16) for kind in (False, True)
        )
        if not torch.equal(exact, rough):
            log.warning(
                "%s: the gated activation by estimates is not proven; the clause's sequence serves", device
            )
            return False
    return True


def estimates_serve(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether estimates may serve. Looks at the device at the first call, and waits for it."""
    if device.type != "cuda" or not estimates_may_serve(dtype):
        return False
    return not torch.cuda.is_current_stream_capturing() and _estimates_proven(device)


def estimates_may_serve(dtype: torch.dtype) -> bool:
    """Whether it is worth while to look, on GPUs that this process's torch is for."""
    return dtype == torch.bfloat16 and torch.version.cuda is not None


def silu_mul_as(
    gate_up: Tensor, out: Tensor | None, launch: Launch, rough: bool, start: Start = start
) -> Tensor:
    """`silu_mul` by estimates or without."""
    rows, double = gate_up.shape
    width = double // 2
    y = result("activation output", out, gate_up, gate_up.dtype, (rows, width))
    if rows:
        grid = (rows, triton.cdiv(width, BLOCK))
        start(silu_mul_rows, grid, gate_up, y, WIDTH=width, BLOCK=BLOCK, ROUGH=rough, launch=launch)
    return y


def silu_mul(
    gate_up: Tensor, out: Tensor | None = None, launch: Launch = SILU_LAUNCH, start: Start = start
) -> Tensor:
    """silu(first half) * second half. act [rows, 2 width] -> act [rows, width]."""
    rows, double = check_tensor("gate_up", gate_up, ACTIVATIONS, (None, None)).shape
    if double % 2:
        raise NumericsError(f"gate_up has {double} columns, an odd number")
    rough = rows >= MANY_ROWS and estimates_serve(gate_up.dtype, gate_up.device)
    return silu_mul_as(gate_up, out, launch, rough, start)
