"""What the GEMM kernels share: which tile a program computes, the sum of a tile over K, and the write of its result.

The sum is a chain over K in ascending order in one accumulator, or, with LEAVES above 1, a balanced tree over so many
chains of equal length. How operands are loaded and which of them stands on the left of the product is free.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def grouped_tile(tile, row_tiles, column_tiles, GROUP: tl.constexpr):
    """(row tile, column tile) of a tile number: GROUP row tiles share the weights that they read together."""
    per_group = GROUP * column_tiles
    first = tile // per_group * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    return first + tile % per_group % height, tile % per_group // height


@triton.jit
def tile_corner(
    tile, row_tiles, column_tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr
):
    """(first row, first column) of a tile number."""
    row_tile, column_tile = grouped_tile(tile, row_tiles, column_tiles, GROUP)
    return row_tile * ROWS, column_tile * COLUMNS


@triton.jit
def tile_bounds(tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """(first row, first column, which of its rows lie inside, which of its columns) of a tile number."""
    row_tile, column_tile = grouped_tile(tile, tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS), GROUP)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    row_start, column_start = row_tile * ROWS, column_tile * COLUMNS
    return row_start, column_start, row < rows - row_start, column < columns - column_start


@triton.jit
def begin_dependent(
    panel, depth, COLUMNS: tl.constexpr, WAIT: tl.constexpr, PREFETCH: tl.constexpr, THREADS: tl.constexpr
):
    """Let the next kernel start, ask the first weights into the cache, wait for the kernel ahead."""
    if WAIT == 2:
        tl.extra.cuda.gdc_launch_dependents()
    if PREFETCH > 0:
        # One bulk prefetch a thread: THREADS / COLUMNS pieces of each weight row.
        PIECES: tl.constexpr = THREADS // COLUMNS if THREADS > COLUMNS else 1
        PIECE: tl.constexpr = PREFETCH // PIECES
        BYTES: tl.constexpr = PIECE * panel.dtype.element_ty.primitive_bitwidth // 8
        thread = tl.arange(0, COLUMNS * PIECES)
        address = panel + (thread // PIECES) * depth + (thread % PIECES) * PIECE
        tl.inline_asm_elementwise(
            f"cp.async.bulk.prefetch.L2.global [$1], {BYTES}; mov.u32 $0, 0;",
            "=r,l",
            [address],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    tl.extra.cuda.gdc_wait()


@triton.jit
def load_tile(pointers, line_inside, k_inside, MASK_LINES: tl.constexpr, MASK_DEPTH: tl.constexpr):
    """A tile with its lines along the first axis; what lies outside is zero."""
    if MASK_LINES and MASK_DEPTH:
        return tl.load(pointers, mask=line_inside[:, None] & k_inside[None, :], other=0.0)
    elif MASK_LINES:
        return tl.load(pointers, mask=line_inside[:, None], other=0.0)
    elif MASK_DEPTH:
        return tl.load(pointers, mask=k_inside[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def zero_tile(ROWS: tl.constexpr, COLUMNS: tl.constexpr, SWAP: tl.constexpr):
    """The empty sum of a tile, float32 [ROWS, COLUMNS], transposed where weights stand on the left."""
    if SWAP:
        return tl.zeros((COLUMNS, ROWS), tl.float32)
    else:
        return tl.zeros((ROWS, COLUMNS), tl.float32)


@triton.jit
def product(left, right, total, SWAP: tl.constexpr):
    """total + x tile weight tile^T."""
    if SWAP:
        return tl.dot(right, left.T, total, input_precision="ieee")
    else:
        return tl.dot(left, right.T, total, input_precision="ieee")


@triton.jit
def pointer_sums(
    x, weight, second, row_inside, column_inside, depth, first, last,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SWAP: tl.constexpr,
    MASK_ROWS: tl.constexpr, MASK_COLUMNS: tl.constexpr, MASK_DEPTH: tl.constexpr,
    LEAVES: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """A tile's sum over k from `first` to `last`, and with PAIR that of the same rows with a second panel of weights.

    `x`, `weight`, `second`: pointers to the first row that the tile has of each. A pair is not cut into leaves."""
    k = tl.arange(0, DEPTH)
    lines = tl.arange(0, COLUMNS)[:, None] * depth + k[None, :]
    left_pointers = x + first + tl.arange(0, ROWS)[:, None] * depth + k[None, :]
    right_pointers = weight + first + lines
    other_pointers = second + first + lines
    total = zero_tile(ROWS, COLUMNS, SWAP)
    other = total
    pending = no_leaves(total)
    steps = (last - first) // (LEAVES * DEPTH)
    left_in_leaf = steps
    for start in range(first, last, DEPTH):
        k_inside = k < last - start
        left = load_tile(left_pointers, row_inside, k_inside, MASK_ROWS, MASK_DEPTH)
        right = load_tile(right_pointers, column_inside, k_inside, MASK_COLUMNS, MASK_DEPTH)
        if PAIR:
            beside = load_tile(other_pointers, column_inside, k_inside, MASK_COLUMNS, MASK_DEPTH)
        total = product(left, right, total, SWAP)
        if PAIR:
            other = product(left, beside, other, SWAP)
            other_pointers += DEPTH
        left_pointers += DEPTH
        right_pointers += DEPTH
        total, pending, left_in_leaf = end_block(total, pending, left_in_leaf, steps, LEAVES)
    return root(total, pending, LEAVES), other


@triton.jit
def descriptor_sums(
    x, weight, row_start, column_start, second_start, first, last,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SWAP: tl.constexpr,
    LEAVES: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """The same by the copy engine, which reads zeros outside of x and weight. The second panel begins at the row
    `second_start` of weight."""
    total = zero_tile(ROWS, COLUMNS, SWAP)
    other = total
    pending = no_leaves(total)
    steps = (last - first) // (LEAVES * DEPTH)
    left_in_leaf = steps
    for start in range(first, last, DEPTH):
        left = x.load([row_start, start])
        right = weight.load([column_start, start])
        if PAIR:
            beside = weight.load([second_start, start])
        total = product(left, right, total, SWAP)
        if PAIR:
            other = product(left, beside, other, SWAP)
        total, pending, left_in_leaf = end_block(total, pending, left_in_leaf, steps, LEAVES)
    return root(total, pending, LEAVES), other


@triton.jit
def no_leaves(total):
    """What is pending before the first leaf: sums of one, two and four leaves, and the number of leaves seen.

    An empty sum is -0.0, to which anything adds unchanged, so that a leaf is taken in by additions alone: the
    accumulator is never copied, and the product behind the leaf's end need not wait for it."""
    empty = tl.full(total.shape, -0.0, tl.float32)
    return empty, empty, empty, 0


@triton.jit
def end_block(total, pending, left_in_leaf, steps, LEAVES: tl.constexpr):
    """Behind a block of K: where it is a leaf's last one, the leaf is taken in and the next begins. `steps`: blocks of
    a leaf."""
    if LEAVES > 1:
        left_in_leaf -= 1
        if left_in_leaf == 0:
            pending = add_leaf(total, pending, LEAVES)
            total = tl.zeros_like(total)
            left_in_leaf = steps
    return total, pending, left_in_leaf


@triton.jit
def add_leaf(total, pending, LEAVES: tl.constexpr):
    """Take in a finished leaf, like a digit of a binary counter: a full pair is carried into the next sum."""
    one, two, four, leaf = pending
    one = one + total
    if LEAVES > 2:
        if leaf % 2 == 1:
            two = two + one
            one = tl.full(total.shape, -0.0, tl.float32)
            if LEAVES > 4:
                if leaf == 3:
                    four = two
                    two = tl.full(total.shape, -0.0, tl.float32)
    return one, two, four, leaf + 1


@triton.jit
def root(total, pending, LEAVES: tl.constexpr):
    """The sum over all leaves."""
    one, two, four, _ = pending
    if LEAVES == 1:
        return total
    elif LEAVES == 2:
        return one
    elif LEAVES == 4:
        return two
    else:
        return four + two


@triton.jit
def add_bias(
    total, bias, column_start, columns, COLUMNS: tl.constexpr, SWAP: tl.constexpr, MASK_COLUMNS: tl.constexpr
):
    """A tile's sum plus the bias of its columns."""
    column = tl.arange(0, COLUMNS)
    if MASK_COLUMNS:
        inside = column < columns - column_start
        addend = tl.load(bias + column_start + column, mask=inside, other=0.0).to(tl.float32)
    else:
        addend = tl.load(bias + column_start + column).to(tl.float32)
    if SWAP:
        return total + addend[:, None]
    else:
        return total + addend[None, :]


@triton.jit
def store_tile(
    total, out, row_start, column_start, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SWAP: tl.constexpr,
    MASK_ROWS: tl.constexpr, MASK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Round once, write."""
    rounded = total.to(out.dtype.element_ty)
    corner = out + row_start.to(tl.int64) * columns + column_start
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    row_inside = row < rows - row_start
    column_inside = column < columns - column_start
    if SWAP:
        pointers = corner + row[None, :] * columns + column[:, None]
        inside = row_inside[None, :] & column_inside[:, None]
    else:
        pointers = corner + row[:, None] * columns + column[None, :]
        inside = row_inside[:, None] & column_inside[None, :]
    if MASK_ROWS or MASK_COLUMNS:
        tl.store(pointers, rounded, mask=inside)
    else:
        tl.store(pointers, rounded)
