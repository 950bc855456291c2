"""Meeting points of ranks in each other's memory, for kernels that read and write a peer's buffers.

A *peer table* is an int64 tensor of the addresses at which this rank reaches the same buffer of every rank, itself
among them, in rank order. Programs of one number meet across ranks; so every program of a launch must be running at
once, and launches that meet have at most one program a multiprocessor.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def peer_pointer(peers, rank, like):
    """Where the buffer of `rank` begins, as a pointer of the type of `like`."""
    pointer = tl.load(peers + rank).to(tl.pointer_type(like.dtype.element_ty))
    return tl.multiple_of(pointer, 16)


@triton.jit
def meet(pads, epochs, rank, WORLD: tl.constexpr):
    """Wait until this program's namesakes of all ranks are here. What any of them wrote before is then visible.

    `pads`: peer table of int64 [programs, WORLD] pads, zero at first; `epochs`: int64 [programs] of this rank: how
    often each program has met. Counting up, a pad is never cleared, and a captured graph can be replayed.
    """
    program = tl.program_id(0)
    others = tl.arange(0, WORLD)
    epoch = tl.load(epochs + program) + 1
    # All threads of the program have written before one of them says so.
    tl.debug_barrier()
    theirs = tl.load(pads + others).to(tl.pointer_type(tl.int64)) + program * WORLD + rank
    tl.atomic_xchg(theirs, tl.zeros((WORLD,), tl.int64) + epoch, sem="release", scope="sys")
    own = tl.load(pads + rank).to(tl.pointer_type(tl.int64)) + program * WORLD
    seen = tl.load(own + others, volatile=True)
    while tl.min(seen, 0) < epoch:
        seen = tl.load(own + others, volatile=True)
    # The fence that makes the others' writes visible; the value itself is known.
    tl.atomic_add(own + rank, 0, sem="acq_rel", scope="sys")
    tl.store(epochs + program, epoch)
    tl.debug_barrier()
