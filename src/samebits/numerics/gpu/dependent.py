"""Programmatic dependent launch: a kernel may be set up while the one ahead of it still runs.

A kernel that begins with `wait_ahead` lets the next one be set up at once, and waits for the one ahead before it
touches memory, but for weights that no kernel writes. Since every kernel of such a chain waits, whatever an earlier
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
def wait_ahead(DEPENDENT: tl.constexpr):
    """Wait for the kernel ahead. Nothing but constant weights may be read before it, and nothing written."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
