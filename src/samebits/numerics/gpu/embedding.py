"""Embedding rows, copied exactly."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samebits.numerics.gpu.checks import ACTIVATIONS, check_tensor, result
from samebits.numerics.gpu.configuration import Launch, Start, start
from samebits.numerics.gpu.dependent import wait_ahead

BLOCK = 1024
COPY_LAUNCH = Launch(warps=4, stages=1)


@triton.jit
def copy_rows(
    token_ids, table, y, vocabulary, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):
    """Grid (rows, blocks of a row). An id outside the vocabulary gives a row of zeros, and reads nothing."""
    wait_ahead(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token_id = tl.load(token_ids + row).to(tl.int64)
    known = (token_id >= 0) & (token_id < vocabulary)
    value = tl.load(table + token_id * WIDTH + columns, mask=known & (columns < WIDTH), other=0.0)
    tl.store(y + row * WIDTH + columns, value.to(y.dtype.element_ty), mask=columns < WIDTH)


def embed(
    token_ids: Tensor,
    table: Tensor,
    out: Tensor | None = None,
    launch: Launch = COPY_LAUNCH,
    start: Start = start,
) -> Tensor:
    """Rows of `table` [vocabulary, width] for int64 ids -> act [rows, width], act being the table's dtype."""
    vocabulary, width = check_tensor("embedding table", table, ACTIVATIONS, (None, None)).shape
    rows = check_tensor("token_ids", token_ids, (torch.int64, torch.int32), (None,)).shape[0]
    y = result("embedding output", out, table, table.dtype, (rows, width))
    if rows:
        grid = (rows, triton.cdiv(width, BLOCK))
        start(copy_rows, grid, token_ids, table, y, vocabulary, WIDTH=width, BLOCK=BLOCK, launch=launch)
    return y
