"""The public operators: rows are independent of their neighbours, and right."""

from __future__ import annotations

import pytest
import torch

from conftest import INTERPRETED
from samebits import ops
from samebits.errors import NumericsError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu import public

ROWS = (1, 3, 20) if INTERPRETED else (1, 3, 16, 20, 129, 700)
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def by_gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter the GPU's kernels run on CPU tensors."""
    monkeypatch.setattr(ops, "_kernels", lambda *tensors: public)


def inputs(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(1)
    x, weight = torch.randn(ROWS[-1], 272, generator=make), torch.randn(96, 272, generator=make)
    return x.to(dtype).to(device), weight.to(dtype).to(device)


def check_a_row_knows_no_neighbour(device: torch.device, dtypes: list[torch.dtype]) -> None:
    for dtype in dtypes:
        x, weight = inputs(dtype, device)
        functions = {
            "linear": lambda part, weight=weight: ops.linear(part, weight, weight[:, 0]),
            "mm": lambda part, weight=weight: ops.mm(part, weight.T),
            "bmm": lambda part, weight=weight: ops.bmm(part[None], weight.T[None])[0],
            "mean": ops.mean,
            "log_softmax": ops.log_softmax,
            "rms_norm": lambda part, weight=weight: ops.rms_norm(part, weight[0]),
        }
        for name, function in functions.items():
            whole = function(x)
            for rows in ROWS[:-1]:
                assert torch.equal(function(x[-rows:]), whole[-rows:]), (name, dtype, rows)
            assert not torch.equal(whole[:1], whole[1:2]), name


def check_a_bias_of_another_length_is_refused(device: torch.device) -> None:
    """The kernel would read what lies behind it."""
    x, weight = inputs(torch.float32, device)
    for bias in (weight[:95, 0], weight[0, :97], weight[:1, :96], weight[0, 0]):
        with pytest.raises(NumericsError, match="does not fit"):
            ops.linear(x, weight, bias)


def check_results_are_near_float64(device: torch.device, dtypes: list[torch.dtype]) -> None:
    for dtype in dtypes:
        x, weight = inputs(dtype, device)
        wide, wide_weight = x.double(), weight.double()
        pairs = {
            "linear": (ops.linear(x, weight), wide @ wide_weight.T, 100.0),
            "mean": (ops.mean(x, 0), wide.mean(0), 1.0),
            "log_softmax": (ops.log_softmax(x), wide.log_softmax(-1), 10.0),
            "rms_norm": (
                ops.rms_norm(x, weight[0]),
                wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * wide_weight[0],
                10.0,
            ),
        }
        for name, (got, expected, scale) in pairs.items():
            assert (got.double() - expected).abs().max() <= BOUNDS[dtype] * scale, (name, dtype)


def check_a_mean_keeps_its_order(device: torch.device) -> None:
    """1 hides each of two small terms, and not their sum. Lanes are added up ascending, and fold by halving."""
    small, lanes = 0.75 * 2.0**-24, CONTRACT.device_reduction_lanes
    x = torch.zeros(2, 3 * lanes)
    x[0, 1], x[0, 2], x[0, 2 + lanes // 2] = 1.0, small, small
    x[1, 3], x[1, 3 + lanes], x[1, 3 + 2 * lanes] = 1.0, small, small
    sums = torch.tensor([1 + 2.0**-23, 1.0])
    assert torch.equal(ops.mean(x.to(device), 1).cpu(), sums / x.shape[1])
