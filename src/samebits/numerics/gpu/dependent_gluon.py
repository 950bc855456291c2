"""Programmatic dependent launch in Gluon: what `dependent` has for kernels in Triton. Each warp waits for itself."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def dependents_may_start(DEPENDENT: gl.constexpr = True):
    """Let the next kernel be set up."""
    if DEPENDENT:
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )


@gluon.jit
def wait_for_the_kernel_ahead(DEPENDENT: gl.constexpr = True):
    """Wait until the kernel ahead has ended; a warp that comes here again does not wait."""
    if DEPENDENT:
        gl.inline_asm_elementwise(
            "griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
