"""Sums over ranks whose rows are dealt out: each rank adds its rows, adds the residual and norms them for all.

The bits are those of a sum on every rank and the norm behind it, for a row's norm is the same wherever it is computed.
What is saved is the norm of all rows on all ranks, and the trip of their sums through memory. The residual of a row
lives on with the rank that owns it, and is told to the others only where somebody else reads it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.all_reduce import READ, own_shares, sum_of_ranks
from samebits.numerics.gpu.dependent import wait_ahead
from samebits.numerics.gpu.norm import inverse_root_mean_square
from samebits.numerics.gpu.symmetric import ALONE, meet_at, pads_of_program, peer_pointers


@triton.jit
def add_norm_shares(
    inputs, results, pads, epochs, like, residual, weight, y, total, share_rows, rank, eps,
    WIDTH: tl.constexpr, LANES: tl.constexpr, FIRST: tl.constexpr, WORLD: tl.constexpr,
    TREE: tl.constexpr, WAY: tl.constexpr, NORMED: tl.constexpr, MEET: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (programs,). Every rank adds the rows rank * share_rows .. of all ranks' messages, rounds to act, adds their
    residual and rounds again. NORMED: that goes into `total`, whose other rows are left alone, and its norm into the
    results of all ranks; else it goes into the results by itself. WAY: the parts are read, or have been written to the
    ranks that add them. The other arguments are as in `two_shot`."""
    wait_ahead(DEPENDENT)
    sums = peer_pointers(results, y, WORLD)
    if WAY == READ:
        parts = peer_pointers(inputs, like, WORLD)
    else:
        parts = own_shares(like, inputs, rank, share_rows * WIDTH, FIRST, WORLD, WAY)
    if MEET != ALONE:
        program = tl.program_id(0)
        epoch = tl.load(epochs + program) + 1
        theirs, own = pads_of_program(pads, rank, WORLD)
    if MEET != ALONE:
        meet_at(theirs, own, epoch, rank, WORLD, MEET)
    for row in range(tl.program_id(0), share_rows, tl.num_programs(0)):
        begin = (rank * share_rows + row).to(tl.int64) * WIDTH
        values = ()  # a tuple of blocks, which the compiler unrolls
        for column in tl.static_range(0, WIDTH, LANES):
            columns = column + tl.arange(0, LANES)
            mask = columns < WIDTH
            joined = sum_of_ranks(parts, begin + columns, mask, FIRST, WORLD, TREE).to(y.dtype.element_ty)
            other = tl.load(residual + begin + columns, mask=mask, other=0.0)
            values = values + ((joined.to(tl.float32) + other.to(tl.float32)).to(y.dtype.element_ty),)  # type: ignore[assignment]
        if NORMED:
            squares = tl.zeros((LANES,), tl.float32)
            for part in tl.static_range(0, len(values)):
                wide = values[part].to(tl.float32)  # type: ignore[var-annotated]
                squares = tl.fma(wide, wide, squares)
            scale = inverse_root_mean_square(tl.reshape(squares, (1, LANES)), LANES, WIDTH, eps)
        for part in tl.static_range(0, len(values)):
            columns = part * LANES + tl.arange(0, LANES)
            mask = columns < WIDTH
            told = values[part]  # type: ignore[var-annotated]
            if NORMED:
                tl.store(total + begin + columns, told, mask=mask)
                factor = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
                told = (factor * (told.to(tl.float32) * scale)).to(y.dtype.element_ty)
            for step in tl.static_range(WORLD):
                # Each rank begins with another peer, so that the links share the load.
                tl.store(sums[(FIRST + step) % WORLD] + begin + columns, told, mask=mask)
    if MEET != ALONE:
        meet_at(theirs, own, epoch + 1, rank, WORLD, MEET)
        tl.store(epochs + program, epoch + 1)
