"""The operators of `samebits.ops` on CPU: float32 arithmetic, results in the input's type."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from samebits.numerics.cpu.mean import MEAN
from samebits.numerics.cpu.operators import CpuOperators, available_cores
from samebits.numerics.cpu.pool import Pool


@functools.cache
def _shared_pool() -> Pool:
    return Pool(available_cores())


@functools.cache
def _operators() -> CpuOperators:
    return CpuOperators(pool=_shared_pool())


def mean(x: Tensor) -> Tensor:
    """[rows, width] -> [rows]."""
    wide = x.float().contiguous()
    y = torch.empty(x.shape[0])
    if x.shape[0]:
        arguments = (wide.data_ptr(), y.data_ptr(), x.shape[1])
        _shared_pool().run(MEAN.address, arguments, x.shape[0], wide.numel() > 16384)
    return y.to(x.dtype)


def log_sum_exp(x: Tensor) -> Tensor:
    """[rows, width] -> float32 [rows]."""
    return _operators().log_sum_exp(x.float().contiguous())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[rows, width] -> [rows, width]."""
    return _operators().rms_norm(x.float().contiguous(), weight, eps).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [rows, in], weight [out, in] -> [rows, out]."""
    operators = _operators()
    packed = operators.pack_linear(weight, None if bias is None else bias.float())
    return operators.linear(x.float().contiguous(), packed).to(x.dtype)
