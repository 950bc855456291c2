"""Sums over ranks whose rows are dealt out: each rank adds its rows, adds the residual and norms them for all.

The bits are those of a sum on every rank and the norm behind it, for a row's norm is the same wherever it is computed.
What is saved is the norm of all rows on all ranks, and the trip of their sums through memory. The residual of a row
lives on with the rank that owns it, and is told to the others only where somebody else reads it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.all_reduce import READ, own_shares, residual_sums, scale_of_row
from samebits.numerics.gpu.dependent import wait_ahead
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
        meet_at(theirs, own, epoch, rank, WORLD, MEET)
    for row in range(tl.program_id(0), share_rows, tl.num_programs(0)):
        begin = (rank * share_rows + row).to(tl.int64) * WIDTH
        values = residual_sums(parts, residual, y, begin, FIRST, WORLD, TREE, WIDTH, LANES)
        if NORMED:
            scale = scale_of_row(values, eps, WIDTH, LANES)
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
