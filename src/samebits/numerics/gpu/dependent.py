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
    """Wait for the kernel ahead, and let the next one be set up only when this one has ended: kernels behind may
    then read what this one writes, and what stood before it, ahead of their own waits."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()


@triton.jit
def wait_ahead(DEPENDENT: tl.constexpr):
    """Wait for the kernel ahead. Before it, nothing may be written, and only what no kernel writes, or what a kernel
    of `wait_only` found or wrote, may be read."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
