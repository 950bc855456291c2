"""The operators of `samebits.ops` on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from samebits.numerics.gpu import mean as means
from samebits.numerics.gpu import norm
from samebits.numerics.gpu.gemm_candidates import FLOAT32_TILES, Tile, launch_tile
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.launch import load
from samebits.numerics.gpu.log_sum_exp import log_sum_exp as log_sum_exp_rows

FEW, SOME, MANY = Tile(16, 32, 128, 4, 4), Tile(64, 64, 128, 4, 3), Tile(128, 128, 64, 8, 3)
"""Tiles by the number of rows. Every tile gives the bits of the GEMM clause's chain."""


def aligned(x: Tensor) -> Tensor:
    """x contiguous, its first element at a multiple of 16 bytes."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def mean(x: Tensor) -> Tensor:
    """[rows, width] -> [rows]."""
    return means.mean(aligned(x))


def log_sum_exp(x: Tensor) -> Tensor:
    """[rows, width] -> float32 [rows]."""
    return log_sum_exp_rows(aligned(x.float()))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[rows, width] -> [rows, width]."""
    return norm.rms_norm(aligned(x), aligned(weight), eps, constant=False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [rows, in], weight [out, in] -> [rows, out]."""
    problem = GemmProblem(weight.shape[0], weight.shape[1], x.dtype, x.dtype, bias is not None)
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    if x.dtype == torch.float32:
        tile = FLOAT32_TILES[0]
    else:
        tile = FEW if x.shape[0] <= 16 else SOME if x.shape[0] <= 128 else MANY
    inputs = (aligned(x), aligned(weight), *(() if bias is None else (aligned(bias.to(x.dtype)),)))
    # Compiled for one row, so that rows beyond the last are masked whatever their number.
    launch_tile(load(tile.source(problem, 1)), tile, problem, inputs, (out,))
    return out
