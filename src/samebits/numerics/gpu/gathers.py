"""Copies over ranks that put parts where they belong: logits side by side, rows of embeddings from their owners, rows
of a part to the ranks that add them.

Nothing is added; every element is copied from the one rank that has it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.all_reduce import PIECE
from samebits.numerics.gpu.dependent import wait_ahead
from samebits.numerics.gpu.symmetric import meet, peer_pointer


@triton.jit
def meet_alone(pads, epochs, rank, WORLD: tl.constexpr, MEET: tl.constexpr, DEPENDENT: tl.constexpr):
    """Grid (1,). Ranks meet, and nothing else."""
    wait_ahead(DEPENDENT)
    meet(pads, epochs, rank, WORLD, MEET)


@triton.jit
def gather_columns(
    inputs, pads, epochs, y, rows, held_pieces, pieces, rank,
    WORLD: tl.constexpr, BLOCK: tl.constexpr, MEET: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (programs,). y [rows, columns] = the inputs [rows, held] of all ranks side by side, as far as the columns
    reach; the last rank's part may end behind them."""
    wait_ahead(DEPENDENT)
    meet(pads, epochs, rank, WORLD, MEET)
    lanes = tl.arange(0, BLOCK)
    held = held_pieces * PIECE
    columns = pieces * PIECE
    blocks = tl.cdiv(held, BLOCK)
    for work in range(tl.program_id(0), rows * WORLD * blocks, tl.num_programs(0)):
        part = work // blocks
        # Each rank begins with another peer, so that the links share the load.
        peer = (rank + part) % WORLD
        row = part // WORLD
        inside = (work % blocks) * BLOCK + lanes
        column = peer * held + inside
        mask = (inside < held) & (column < columns)
        value = tl.load(peer_pointer(inputs, peer, y) + row * tl.cast(held, tl.int64) + inside, mask=mask)
        tl.store(y + row * tl.cast(columns, tl.int64) + column, value, mask=mask)


@triton.jit
def gather_rows(
    inputs, pads, epochs, ids, y, rows, held, rank,
    WIDTH: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr, MEET: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (programs,). y [rows, WIDTH]: each row from the input [rows, WIDTH] of the rank that holds its id, where
    every rank holds `held` ids in rank order."""
    wait_ahead(DEPENDENT)
    meet(pads, epochs, rank, WORLD, MEET)
    lanes = tl.arange(0, BLOCK)
    blocks: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    for work in range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row = work // blocks
        start = row * tl.full((), WIDTH, tl.int64)
        owner = tl.load(ids + row) // held
        owner = tl.minimum(tl.maximum(owner, 0), WORLD - 1)
        columns = (work % blocks) * BLOCK + lanes
        mask = columns < WIDTH
        value = tl.load(peer_pointer(inputs, owner, y) + start + columns, mask=mask)
        tl.store(y + start + columns, value, mask=mask)


@triton.jit
def push_rows(
    x, peers, rows, share_rows, rank, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):  # fmt: skip
    """Grid (programs,). Row r of x [rows, WIDTH] to its owner r // share_rows, whose memory [ranks, share_rows, WIDTH]
    begins at peers[owner], to place `rank` there: what `gemm_pushed` does with its results."""
    wait_ahead(DEPENDENT)
    lanes = tl.arange(0, BLOCK)
    blocks: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    for work in range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row = work // blocks
        owner = row // share_rows
        place = ((rank - owner) * share_rows + row) * tl.full((), WIDTH, tl.int64)
        columns = (work % blocks) * BLOCK + lanes
        mask = columns < WIDTH
        value = tl.load(x + row * tl.full((), WIDTH, tl.int64) + columns, mask=mask)
        tl.store(peer_pointer(peers, owner, x) + place + columns, value, mask=mask)
