"""The GEMM clause: y[m, n] = fma chain over ascending k from +0, then + bias[n] in one rounded addition."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.cpu.kernel import Kernel, inlined, inlined_variant
from samebits.numerics.cpu.lanes import LANES, load, load_float, load_int64, store, store_float
from samebits.numerics.cpu.scratch import make_scratch
from samebits.numerics.cpu.tile import make_tile

STORAGE = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
# Rows of a register tile: with one panel of sixteen it keeps 12 of 16 AVX2 registers busy with sums.
TILE_ROWS = 6
# Elements of k that a pass keeps in the first-level cache, beside six rows; rows that the second level holds.
DEPTH_BLOCK = 512
ROW_BLOCK = 96
SMALL_ROWS = 48


@dataclass(frozen=True)
class CpuLinear:
    """Weight [out, in] as panels [ceil(out / 16), in, 16] of the storage dtype, zero beyond `out`."""

    panels: Tensor
    bias: Tensor | None
    in_features: int
    out_features: int
    storage: str


def pack_linear(weight: Tensor, bias: Tensor | None) -> CpuLinear:
    """Pack a weight [out, in] (bf16, fp16 or fp32); the bias [out] is widened to float32, exactly.

    Raises NumericsError for another dtype or shape.
    """
    if weight.dim() != 2 or weight.dtype not in STORAGE:
        raise NumericsError(
            f"linear weight must be [out, in] in bf16, fp16 or fp32, not {weight.dtype} {list(weight.shape)}"
        )
    out_features, in_features = weight.shape
    if bias is not None and bias.shape != (out_features,):
        raise NumericsError(f"linear bias has shape {list(bias.shape)}, the weight {list(weight.shape)}")
    count = -(-out_features // LANES)
    panels = torch.zeros((count, in_features, LANES), dtype=weight.dtype)
    full = out_features // LANES
    panels[:full] = weight[: full * LANES].view(full, LANES, in_features).transpose(1, 2)
    if full < count:
        panels[full, :, : out_features - full * LANES] = weight[full * LANES :].t()
    wide_bias = None if bias is None else bias.to(torch.float32).contiguous()
    return CpuLinear(panels, wide_bias, in_features, out_features, STORAGE[weight.dtype])


@inlined
def add_bias(y, bias, rows, columns, stride):
    """y[m, n] += bias[n] for `columns` columns."""
    for m in range(rows):
        row = y + m * stride * 4
        full = columns // 16 * 16
        for n in range(0, full, 16):
            store(row, n, load(row, n) + load(bias, n))
        for n in range(full, columns):
            store_float(row, n, load_float(row, n) + load_float(bias, n))


def _make_gemm(storage: str, panels_of_rows: tuple[int, ...]) -> Kernel:
    """The kernel of a storage dtype; `panels_of_rows[m - 1]` panels are computed at once for a tile of m rows."""
    element_bytes = 4 if storage == "float32" else 2
    panels_one, panels_two, panels_three = panels_of_rows[:3]
    tile_one_row = make_tile(storage, panels_one, 1, 1)
    tile_two_rows = make_tile(storage, panels_two, 2, 2)
    tile_three_rows = make_tile(storage, panels_three, 3, 3)
    tile_panel = make_tile(storage, 1, 1, TILE_ROWS)
    edge_scratch = make_scratch(TILE_ROWS * LANES)

    @inlined_variant(storage)
    def wide_panels(rows):
        if rows == 1:
            return panels_one
        if rows == 2:
            return panels_two
        if rows == 3:
            return panels_three
        return 1

    @inlined_variant(storage)
    def wide_tile(rows, a, a_stride, b, panel_stride, c, c_stride, depth, accumulate):
        if rows == 1:
            tile_one_row(rows, a, a_stride, b, panel_stride, 16, c, c_stride, depth, accumulate)
        elif rows == 2:
            tile_two_rows(rows, a, a_stride, b, panel_stride, 16, c, c_stride, depth, accumulate)
        else:
            tile_three_rows(rows, a, a_stride, b, panel_stride, 16, c, c_stride, depth, accumulate)

    @inlined_variant(storage)
    def edge_panel(rows, a, a_stride, b, c, c_stride, columns, depth, accumulate):
        """One tile of a panel with fewer than sixteen columns, through a scratch tile."""
        scratch = edge_scratch()
        if accumulate != 0:
            for m in range(rows):
                for n in range(columns):
                    store_float(scratch, m * 16 + n, load_float(c, m * c_stride + n))
                for n in range(columns, 16):
                    store_float(scratch, m * 16 + n, np.float32(0.0))
        tile_panel(rows, a, a_stride, b, 0, 16, scratch, 16, depth, accumulate)
        for m in range(rows):
            for n in range(columns):
                store_float(c, m * c_stride + n, load_float(scratch, m * 16 + n))

    def task(arguments, index):
        x = load_int64(arguments, 0)
        weight = load_int64(arguments, 1)
        y = load_int64(arguments, 2)
        bias = load_int64(arguments, 3)
        all_rows = load_int64(arguments, 4)
        columns = load_int64(arguments, 5)
        depth = load_int64(arguments, 6)
        row_block = load_int64(arguments, 7)
        depth_block = load_int64(arguments, 8)
        panel_block = load_int64(arguments, 9)
        panel_tasks = load_int64(arguments, 10)
        panels = (columns + 15) // 16
        panel_stride = depth * 16
        row_start = index // panel_tasks * row_block
        row_end = min(row_start + row_block, all_rows)
        panel_start = index % panel_tasks * panel_block
        panel_end = min(panel_start + panel_block, panels)
        full_panels = columns // 16
        for k in range(0, depth, depth_block):
            k_count = min(depth_block, depth - k)
            panel = panel_start
            while panel < panel_end:
                step = 1
                width = wide_panels(row_end - row_start)
                if width > 1 and panel + width <= min(panel_end, full_panels):
                    step = width
                b = weight + (panel * panel_stride + k * 16) * element_bytes
                row = row_start
                while row < row_end:
                    rows = min(6, row_end - row)
                    a = x + (row * depth + k) * 4
                    c = y + (row * columns + panel * 16) * 4
                    if step > 1:
                        wide_tile(rows, a, depth, b, panel_stride, c, columns, k_count, k)
                    elif panel < full_panels:
                        tile_panel(rows, a, depth, b, 0, 16, c, columns, k_count, k)
                    else:
                        edge_panel(rows, a, depth, b, c, columns, columns - panel * 16, k_count, k)
                    row += rows
                panel += step
        if bias != 0:
            start = panel_start * 16
            count = min(panel_end * 16, columns) - start
            offset = row_start * columns + start
            add_bias(y + offset * 4, bias + start * 4, row_end - row_start, count, columns)

    task.__name__ = task.__qualname__ = f"gemm_{storage}"
    return Kernel(task)


KERNELS = {storage: _make_gemm(storage, (4, 3, 2)) for storage in STORAGE.values()}


@dataclass(frozen=True)
class GemmShare:
    """How a product is cut into tasks: (row blocks) x (blocks of panels)."""

    row_block: int
    depth_block: int
    panel_block: int
    panel_tasks: int
    tasks: int


@functools.lru_cache(maxsize=1024)
def share_out(rows: int, columns: int, depth: int, threads: int) -> GemmShare:
    """Cut a product into tasks that are large enough to pay for their launch."""
    panels = -(-columns // LANES)
    row_block = rows if rows <= SMALL_ROWS else ROW_BLOCK
    row_tasks = -(-rows // row_block)
    depth_block = depth if rows <= TILE_ROWS else min(depth, DEPTH_BLOCK)
    work = rows * columns * depth
    wanted = 1 if work < 60_000 or threads == 1 else threads * (4 if work > 2_000_000 else 1)
    panel_tasks = max(1, min(-(-wanted // row_tasks), panels))
    panel_block = -(-panels // panel_tasks)
    if rows <= 3 and panel_block > 4:
        panel_block = -(-panel_block // 12) * 12 if panel_block > 24 else -(-panel_block // 4) * 4
    panel_tasks = -(-panels // panel_block)
    return GemmShare(row_block, depth_block, panel_block, panel_tasks, row_tasks * panel_tasks)
