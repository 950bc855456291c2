"""Kernels of the GEMM clause of `tp-invariant`: K in equal leaves, each a chain, joined by a balanced tree in float32.

A rank that holds 8, 4, 2 or 1 of the leaves computes its part of the same tree, so the bits do not depend on the
tensor-parallel degree. The tree is kept like a binary counter: a finished leaf is added to the pending sum of its
level, from the left, as long as there is one, and then waits there itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.gemm_tile import begin_dependent, descriptor_sums, store_tile, tile_corner


@triton.jit
def leaf_chain(
    x, weight, row_inside, column_inside, row, column, k, depth, first, last,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, ATOM: tl.constexpr,
):  # fmt: skip
    """The chain over k from first to last, an atom at a time."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, ATOM):
        left = tl.load(x + row[:, None] * depth + (start + k)[None, :], mask=row_inside[:, None], other=0.0)
        right = tl.load(
            weight + column[:, None] * depth + (start + k)[None, :], mask=column_inside[:, None], other=0.0
        )
        total = tl.dot(left, right.T, total, input_precision="ieee")
    return total


@triton.jit
def tree_reference(
    x,
    weight,
    out,
    rows,
    column_units,
    depth_units,
    COLUMN_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ATOM: tl.constexpr,
    LEAVES: tl.constexpr,
):
    """The clause's reference: leaf after leaf, the sums written out."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    leaf = depth // LEAVES
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, ATOM)
    row_inside, column_inside = row < rows, column < columns
    # Level by level: sums of one leaf, of two, of four.
    ones = ()
    for index in tl.static_range(LEAVES):
        ones = ones + (  # type: ignore[assignment]
            leaf_chain(
                x, weight, row_inside, column_inside, row, column, k, depth, index * leaf, (index + 1) * leaf,
                COLUMNS, ROWS, ATOM,
            ),
        )  # fmt: skip
    if LEAVES == 8:
        total = ((ones[0] + ones[1]) + (ones[2] + ones[3])) + ((ones[4] + ones[5]) + (ones[6] + ones[7]))
    elif LEAVES == 4:
        total = (ones[0] + ones[1]) + (ones[2] + ones[3])
    elif LEAVES == 2:
        total = ones[0] + ones[1]
    else:
        total = ones[0]
    tl.store(
        out + row[:, None] * columns + column[None, :],
        total.to(out.dtype.element_ty),
        mask=row_inside[:, None] & column_inside[None, :],
    )


@triton.jit
def partial_pointers(partials, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SWAP: tl.constexpr):
    """Where a tile's partial sum number `place` lies."""
    base = partials + place.to(tl.int64) * (ROWS * COLUMNS)
    if SWAP:
        return base + tl.arange(0, COLUMNS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    else:
        return base + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def partial(partials, place, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SWAP: tl.constexpr):
    """What a program left behind; not from this multiprocessor's cache, which may hold an older kernel's."""
    return tl.load(partial_pointers(partials, place + part, ROWS, COLUMNS, SWAP), cache_modifier=".cg")


@triton.jit
def pair_of_partials(partials, place, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SWAP: tl.constexpr):
    """The sum of two siblings."""
    one = partial(partials, place, part, ROWS, COLUMNS, SWAP)
    return one + partial(partials, place, part ^ 1, ROWS, COLUMNS, SWAP)


@triton.jit
def shared_tree_gemm(
    x,
    weight,
    weight_pointer,
    out,
    partials,
    arrivals,
    rows,
    column_units,
    depth_units,
    COLUMN_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SWAP: tl.constexpr,
    LEAVES: tl.constexpr,
    PARTS: tl.constexpr,
    WAIT: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
):
    """PARTS programs share a tile: each sums the leaves of one subtree, and who comes last joins them.

    `partials` float32 [tiles, PARTS, tile], `arrivals` int32 [tiles], all zero before and after. Who is last changes
    no bit: sums commute, and the tree's shape is fixed."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    tile = tl.program_id(0) // PARTS
    part = tl.program_id(0) % PARTS
    row_start, column_start = tile_corner(
        tile, tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS), ROWS, COLUMNS, GROUP
    )
    share = depth // PARTS
    if WAIT > 0:
        panel = weight_pointer + column_start.to(tl.int64) * depth + part * share
        begin_dependent(panel, depth, COLUMNS, WAIT, PREFETCH, THREADS)
    total, _ = descriptor_sums(
        x, weight, row_start, column_start, 0, part * share, (part + 1) * share,
        ROWS, COLUMNS, DEPTH, SWAP, LEAVES // PARTS, False,
    )  # fmt: skip
    if WAIT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    place = tile * PARTS
    tl.store(partial_pointers(partials, place + part, ROWS, COLUMNS, SWAP), total, cache_modifier=".cg")
    tl.debug_barrier()
    before = tl.atomic_add(arrivals + tile, 1, sem="acq_rel")
    if before == PARTS - 1:
        total += partial(partials, place, part ^ 1, ROWS, COLUMNS, SWAP)
        if PARTS >= 4:
            total += pair_of_partials(partials, place, part ^ 2, ROWS, COLUMNS, SWAP)
        if PARTS >= 8:
            other = pair_of_partials(partials, place, part ^ 4, ROWS, COLUMNS, SWAP)
            total += other + pair_of_partials(partials, place, part ^ 6, ROWS, COLUMNS, SWAP)
        store_tile(total, out, row_start, column_start, rows, columns, ROWS, COLUMNS, SWAP, True, True)
        tl.store(arrivals + tile, 0)


@triton.jit
def parked_tree_gemm(
    x,
    weight,
    out,
    partials,
    rows,
    column_units,
    depth_units,
    programs,
    COLUMN_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SWAP: tl.constexpr,
    LEAVES: tl.constexpr,
):
    """A fixed number of programs walk the halves of the tiles; the sum of a tile's first half of leaves is parked in
    `partials`, float32 [programs, tile], while the second is computed."""
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    row_tiles = tl.cdiv(rows, ROWS)
    column_tiles = tl.cdiv(columns, COLUMNS)
    half = depth // 2
    mine = 2 * tl.cdiv(row_tiles * column_tiles - tl.program_id(0), programs)
    parked = partial_pointers(partials, tl.program_id(0), ROWS, COLUMNS, SWAP)
    for item in tl.range(0, mine, flatten=True):
        tile = tl.program_id(0) + item // 2 * programs
        second = item % 2
        row_start, column_start = tile_corner(tile, row_tiles, column_tiles, ROWS, COLUMNS, GROUP)
        total, _ = descriptor_sums(
            x, weight, row_start, column_start, 0, second * half, (second + 1) * half,
            ROWS, COLUMNS, DEPTH, SWAP, LEAVES // 2, False,
        )  # fmt: skip
        if second == 0:
            tl.store(parked, total, cache_modifier=".cg")
            tl.debug_barrier()
        else:
            total = tl.load(parked, cache_modifier=".cg") + total
            tl.debug_barrier()
            store_tile(total, out, row_start, column_start, rows, columns, ROWS, COLUMNS, SWAP, True, True)
