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
def peer_pointers(peers, like, WORLD: tl.constexpr):
    """The beginnings of all ranks' buffers. Read ahead of a meeting, they are at hand behind it."""
    pointers = ()  # a tuple, which the compiler unrolls
    for rank in tl.static_range(WORLD):
        pointers = pointers + (peer_pointer(peers, rank, like),)  # type: ignore[assignment]
    return pointers


ALONE, FENCED, ACQUIRED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Ways to meet: not at all; with a fence behind the wait, on any GPU; with loads that are fences, in PTX."""


@triton.jit
def pads_of_program(pads, rank, WORLD: tl.constexpr):
    """Pointers [WORLD] to where this program tells each rank that it is here, and to where each tells it."""
    program = tl.program_id(0)
    others = tl.arange(0, WORLD)
    theirs = tl.load(pads + others).to(tl.pointer_type(tl.int64)) + program * WORLD + rank
    own = tl.load(pads + rank).to(tl.pointer_type(tl.int64)) + program * WORLD + others
    return theirs, own


@triton.jit
def seen_by_now(own, MEET: tl.constexpr):
    """The pads' values."""
    if MEET == ACQUIRED:
        seen = tl.inline_asm_elementwise(
            "ld.acquire.sys.global.u64 $0, [$1];", "=l,l", [own], dtype=tl.int64, is_pure=False, pack=1
        )
    else:
        seen = tl.load(own, volatile=True)
    return seen


@triton.jit
def meet_at(theirs, own, epoch, rank, WORLD: tl.constexpr, MEET: tl.constexpr):
    """Wait until this program's namesakes of all ranks have come to meeting `epoch`. What any of them wrote before is
    then visible. `theirs`, `own`: what `pads_of_program` gave."""
    # All threads of the program have written before one of them says so.
    tl.debug_barrier()
    tl.atomic_xchg(theirs, tl.zeros((WORLD,), tl.int64) + epoch, sem="release", scope="sys")
    seen = seen_by_now(own, MEET)
    while tl.min(seen, 0) < epoch:
        seen = seen_by_now(own, MEET)
    if MEET == FENCED:
        # Makes the others' writes visible; nothing is changed.
        tl.atomic_add(own, 0, mask=tl.arange(0, WORLD) == rank, sem="acq_rel", scope="sys")
    tl.debug_barrier()


@triton.jit
def meet(pads, epochs, rank, WORLD: tl.constexpr, MEET: tl.constexpr):
    """`meet_at` the next meeting. `pads`: peer table of int64 [programs, WORLD] pads, zero at first; `epochs`: int64
    [programs] of this rank: how often each program has met. Counting up, a pad is never cleared, and a captured graph
    can be replayed."""
    if MEET != ALONE:
        program = tl.program_id(0)
        epoch = tl.load(epochs + program) + 1
        theirs, own = pads_of_program(pads, rank, WORLD)
        meet_at(theirs, own, epoch, rank, WORLD, MEET)
        tl.store(epochs + program, epoch)
