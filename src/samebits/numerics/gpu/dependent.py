"""Programmatic dependent launch: a kernel may be set up while the one ahead of it still runs.

A kernel that begins with `wait_ahead` lets the next one be set up at once, and waits for the one ahead before it
touches memory, but for what cannot change any more. Since every kernel of such a chain waits, whatever an earlier
kernel wrote is there.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def allow_next(DEPENDENT: tl.constexpr):
    """Let the next kernel be set up."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_only(DEPENDENT: tl.constexpr):
    """Wait for the kernel ahead, and let the next one be set up only when this one has ended: with `publish` at its
    end, kernels behind may read what this one wrote or found ahead of their own waits."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()


@triton.jit
def publish(DEPENDENT: tl.constexpr):
    """End of a kernel of `wait_only`: what it wrote is in place before any kernel behind can start."""
    if DEPENDENT:
        tl.inline_asm_elementwise("fence.acq_rel.gpu; // $0", "=r", [], tl.int32, is_pure=False, pack=1)


@triton.jit
def wait_ahead(DEPENDENT: tl.constexpr):
    """Wait for the kernel ahead. Before it, nothing may be written, and only what no kernel writes, or what a kernel
    of `wait_only` found or wrote, may be read."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
