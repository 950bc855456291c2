"""The collective clauses on a GPU: sums over ranks in a fixed order, by reading the peers' memory.

`exact` adds the ranks in ascending order, `tp-invariant` (TREE) joins neighbours in pairs, then pairs of pairs; both
in float32, rounded once. An element's sum never depends on the message's size, on its place in it, or on which
kernel makes it: *one-shot* (every rank reads all and adds for itself), *two-shot* (every rank reads its share of all,
adds it and writes the result to all) and *push* (every rank is written its share of all, then as in two-shot) give the
same bits, so choosing between them by size is free.

Messages are counted in pieces, so that the compiler knows every access to be one of 16 bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.dependent import wait_ahead
from samebits.numerics.gpu.norm import inverse_root_mean_square
from samebits.numerics.gpu.symmetric import (
    ALONE,
    meet,
    meet_at,
    pads_of_program,
    peer_pointer,
    peer_pointers,
)

PIECE = tl.constexpr(8)
"""Elements: 16 bytes of the narrowest type."""


@triton.jit
def pair_of_ranks(parts, FIRST: tl.constexpr):
    return parts[FIRST] + parts[FIRST + 1]


@triton.jit
def quad_of_ranks(parts, FIRST: tl.constexpr):
    return pair_of_ranks(parts, FIRST) + pair_of_ranks(parts, FIRST + 2)


@triton.jit
def sum_of_ranks(pointers, offsets, mask, FIRST: tl.constexpr, WORLD: tl.constexpr, TREE: tl.constexpr):
    """The clause's sum over all ranks of the elements at `offsets` from the pointers of their parts, float32. The part
    of rank FIRST is asked for first, so that not all ranks begin with the same one; no order of adding comes of it."""
    loaded = ()  # a tuple of blocks, which the compiler unrolls
    for step in tl.static_range(WORLD):
        loaded = loaded + (tl.load(pointers[(FIRST + step) % WORLD] + offsets, mask=mask, other=0.0),)  # type: ignore[assignment]
    parts = ()
    for rank in tl.static_range(WORLD):
        parts = parts + (loaded[(rank + WORLD - FIRST) % WORLD].to(tl.float32),)  # type: ignore[assignment]
    if TREE:
        if WORLD == 2:
            total = pair_of_ranks(parts, 0)
        elif WORLD == 4:
            total = quad_of_ranks(parts, 0)
        else:
            tl.static_assert(WORLD == 8)
            total = quad_of_ranks(parts, 0) + quad_of_ranks(parts, 4)
    else:
        total = parts[0]
        for rank in tl.static_range(1, WORLD):
            total += parts[rank]
    return total


@triton.jit
def store_sums(
    pointers, y, first, count, lanes, FIRST: tl.constexpr, WORLD: tl.constexpr, TREE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """y [count] = the sums of all ranks' elements from `first` on, each program its blocks of them."""
    for begin in range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
        offsets = begin + lanes
        mask = offsets < count
        total = sum_of_ranks(pointers, first + offsets, mask, FIRST, WORLD, TREE)
        tl.store(y + offsets, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def one_shot(
    inputs, pads, epochs, like, y, pieces, rank,
    FIRST: tl.constexpr, WORLD: tl.constexpr, TREE: tl.constexpr, BLOCK: tl.constexpr, MEET: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (programs,). y [elements] of this rank = the sum of all ranks' inputs."""
    wait_ahead(DEPENDENT)
    pointers = peer_pointers(inputs, like, WORLD)
    meet(pads, epochs, rank, WORLD, MEET)
    lanes = tl.arange(0, BLOCK)
    store_sums(pointers, y, 0, pieces * PIECE, lanes, FIRST, WORLD, TREE, BLOCK)


READ, PUSHED, PUSH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""How the parts reach the rank that adds them: it reads them; they have been written to it; they are written to it."""


@triton.jit
def own_shares(like, shares, rank, share, FIRST: tl.constexpr, WORLD: tl.constexpr, WAY: tl.constexpr):
    """Where every rank's message would begin whose share for this rank, number FIRST, lies at its place in its
    shares [WORLD, share]; its own, unless that has been written there, too, is in its message."""
    own = peer_pointer(shares, rank, like)
    pointers = ()  # a tuple, which the compiler unrolls
    for sender in tl.static_range(WORLD):
        if sender == FIRST and WAY == PUSH:
            pointers = pointers + (like,)  # type: ignore[assignment]
        else:
            pointers = pointers + (own + (sender - FIRST) * tl.cast(share, tl.int64),)  # type: ignore[assignment]
    return pointers


@triton.jit
def push_shares(
    like, shares, share, elements, lanes, FIRST: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write to every other rank what it adds of this rank's message, a program the blocks that its namesakes add."""
    owners = peer_pointers(shares, like, WORLD)
    for begin in range(tl.program_id(0) * BLOCK, share, tl.num_programs(0) * BLOCK):
        offsets = begin + lanes
        parts = ()  # all are asked for before one is written
        for step in tl.static_range(1, WORLD):
            place = (FIRST + step) % WORLD * share + offsets
            mask = (offsets < share) & (place < elements)
            parts = parts + (tl.load(like + place, mask=mask),)  # type: ignore[assignment]
        for step in tl.static_range(1, WORLD):
            mask = (offsets < share) & ((FIRST + step) % WORLD * share + offsets < elements)
            there = owners[(FIRST + step) % WORLD] + FIRST * tl.cast(share, tl.int64)
            tl.store(there + offsets, parts[step - 1], mask=mask)


@triton.jit
def two_shot(
    inputs, results, pads, epochs, like, y, pieces, share_pieces, rank,
    FIRST: tl.constexpr, WORLD: tl.constexpr, TREE: tl.constexpr, WAY: tl.constexpr, BLOCK: tl.constexpr,
    MEET: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (programs,). Every rank sums the `share` elements from rank * share on and writes them into the results of
    all ranks, whose type is that of `y` (a pointer that is not read). `inputs`: peer table of the ranks' messages or,
    where the parts are written to those who add them, of room for their shares [WORLD, share]; `like`: this rank's
    message."""
    wait_ahead(DEPENDENT)
    lanes = tl.arange(0, BLOCK)
    elements = pieces * PIECE
    share = share_pieces * PIECE
    sums = peer_pointers(results, y, WORLD)
    if WAY == READ:
        parts = peer_pointers(inputs, like, WORLD)
    else:
        parts = own_shares(like, inputs, rank, share, FIRST, WORLD, WAY)
    if MEET != ALONE:
        program = tl.program_id(0)
        epoch = tl.load(epochs + program) + 1
        theirs, own = pads_of_program(pads, rank, WORLD)
    if WAY == PUSH:
        push_shares(like, inputs, share, elements, lanes, FIRST, WORLD, BLOCK)
    if MEET != ALONE:
        meet_at(theirs, own, epoch, rank, WORLD, MEET)
    last = tl.minimum((rank + 1) * share, elements)
    for begin in range(rank * share + tl.program_id(0) * BLOCK, last, tl.num_programs(0) * BLOCK):
        offsets = begin + lanes
        mask = offsets < last
        total = sum_of_ranks(parts, offsets, mask, FIRST, WORLD, TREE).to(y.dtype.element_ty)
        for step in tl.static_range(WORLD):
            # Each rank begins with another peer, so that the links share the load.
            tl.store(sums[(FIRST + step) % WORLD] + offsets, total, mask=mask)
    if MEET != ALONE:
        meet_at(theirs, own, epoch + 1, rank, WORLD, MEET)
        tl.store(epochs + program, epoch + 1)


@triton.jit
def reduce_scatter(
    inputs, pads, epochs, like, y, pieces, share_pieces, rank,
    FIRST: tl.constexpr, WORLD: tl.constexpr, TREE: tl.constexpr, BLOCK: tl.constexpr, MEET: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (programs,). y [share] = the sum of all ranks' elements from rank * share on."""
    wait_ahead(DEPENDENT)
    pointers = peer_pointers(inputs, like, WORLD)
    meet(pads, epochs, rank, WORLD, MEET)
    lanes = tl.arange(0, BLOCK)
    elements = pieces * PIECE
    share = share_pieces * PIECE
    first = rank * share
    count = tl.minimum(share, tl.maximum(elements - first, 0))
    store_sums(pointers, y, first, count, lanes, FIRST, WORLD, TREE, BLOCK)


@triton.jit
def all_gather(
    inputs, pads, epochs, y, pieces, rank,
    WORLD: tl.constexpr, BLOCK: tl.constexpr, MEET: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (programs,). y [WORLD, elements] = every rank's input, copied."""
    wait_ahead(DEPENDENT)
    meet(pads, epochs, rank, WORLD, MEET)
    lanes = tl.arange(0, BLOCK)
    elements = pieces * PIECE
    for begin in range(tl.program_id(0) * BLOCK, elements, tl.num_programs(0) * BLOCK):
        offsets = begin + lanes
        mask = offsets < elements
        for step in tl.static_range(WORLD):
            peer = (rank + step) % WORLD
            part = tl.load(peer_pointer(inputs, peer, y) + offsets, mask=mask)
            tl.store(y + peer.to(tl.int64) * elements + offsets, part, mask=mask)


@triton.jit
def residual_sums(
    pointers, residual, y, start, FIRST: tl.constexpr, WORLD: tl.constexpr, TREE: tl.constexpr,
    WIDTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Of the row that begins at `start`: the sums over ranks, rounded to y's type, with the residual, rounded again; a
    tuple of blocks of LANES columns."""
    values = ()  # which the compiler unrolls
    for begin in tl.static_range(0, WIDTH, LANES):
        columns = begin + tl.arange(0, LANES)
        mask = columns < WIDTH
        joined = sum_of_ranks(pointers, start + columns, mask, FIRST, WORLD, TREE).to(y.dtype.element_ty)
        other = tl.load(residual + start + columns, mask=mask, other=0.0)
        values = values + ((joined.to(tl.float32) + other.to(tl.float32)).to(y.dtype.element_ty),)  # type: ignore[assignment]
    return values


@triton.jit
def scale_of_row(values, eps, WIDTH: tl.constexpr, LANES: tl.constexpr):
    """What the norm clause multiplies a row by that lies in a tuple of blocks."""
    squares = tl.zeros((LANES,), tl.float32)
    for part in tl.static_range(0, len(values)):
        wide = values[part].to(tl.float32)
        squares = tl.fma(wide, wide, squares)
    return inverse_root_mean_square(tl.reshape(squares, (1, LANES)), LANES, WIDTH, eps)


@triton.jit
def one_shot_add_norm(
    inputs, pads, epochs, like, residual, weight, y, total, rows, rank, eps,
    WIDTH: tl.constexpr, LANES: tl.constexpr, FIRST: tl.constexpr, WORLD: tl.constexpr,
    TREE: tl.constexpr, MEET: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (programs,). The sum over ranks, rounded to act; the residual added, rounded to act, into `total`; the norm
    clause of that into `y`: the bits of `one_shot` and then the norm kernel, without the trip through memory."""
    wait_ahead(DEPENDENT)
    pointers = peer_pointers(inputs, like, WORLD)
    meet(pads, epochs, rank, WORLD, MEET)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        start = row * tl.full((), WIDTH, tl.int64)
        # Nothing is stored before everything is loaded, so that all reads from the peers are on their way at once.
        values = residual_sums(pointers, residual, y, start, FIRST, WORLD, TREE, WIDTH, LANES)
        scale = scale_of_row(values, eps, WIDTH, LANES)
        for part in tl.static_range(0, len(values)):
            columns = part * LANES + tl.arange(0, LANES)
            mask = columns < WIDTH
            tl.store(total + start + columns, values[part], mask=mask)
            factor = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
            normed = factor * (values[part].to(tl.float32) * scale)
            tl.store(y + start + columns, normed.to(y.dtype.element_ty), mask=mask)
