"""Dependent launch for short kernels: the launch of one overlaps with the end of the one ahead.

A kernel with a constant `WAIT` is launched before the kernel ahead of it has ended, where the device can do that
(NVIDIA from sm_90 on). Its first step is to wait until all that was written ahead of it is there; nothing that
another kernel writes may be read or written before. Then it lets the next kernel begin its own launch, and a
product behind it asks for its first weights meanwhile (gemm.py).
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from samebits.numerics.gpu.launch import TENSOR_MAPS, target_name

WAITING = TENSOR_MAPS
"""Architectures that can launch a kernel before the one ahead has ended."""


@triton.jit
def wait_ahead(WAIT: tl.constexpr):
    """Wait for the kernel ahead, then let the next one begin. The first line of a kernel."""
    if WAIT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@functools.cache
def device_waits() -> bool:
    """Whether this process's device can launch dependent kernels."""
    if isinstance(wait_ahead, InterpretedFunction) or not torch.cuda.is_available():
        return False
    return target_name() in WAITING
