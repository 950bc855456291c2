"""Batch-invariant operators on torch tensors, for people who want these and no engine.

A row of a result is a function of that row's inputs alone: not of the number of rows, of the row's place, or of the
other rows. The clauses are those of `numerics/contract.md`; on CUDA devices the kernels are in Triton, on CPU in
numba. bf16, fp16 and fp32 are served; sums are float32, results have the input's type. Nothing here has a gradient.

    from samebits import ops
    y = ops.linear(x, weight)

    with ops.BatchInvariant():      # torch's own functions, served by these
        y = torch.mm(x, weight.T)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from samebits.errors import NumericsError

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

__all__ = ["BatchInvariant", "bmm", "linear", "log_softmax", "mean", "mm", "rms_norm"]


def _kernels(*tensors: Tensor | None) -> ModuleType:
    """The implementation for the device of all tensors. Raises NumericsError where one does not fit."""
    given = [tensor for tensor in tensors if tensor is not None]
    kind, dtype = given[0].device.type, given[0].dtype
    for tensor in given:
        if tensor.device != given[0].device or tensor.dtype != dtype or dtype not in DTYPES:
            found = ", ".join(f"{one.dtype} on {one.device}" for one in given)
            raise NumericsError(
                f"samebits.ops wants bf16, fp16 or fp32 tensors alike on one device, not {found}"
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise NumericsError("samebits.ops has no gradients: use torch.no_grad() or detach()")
    if kind == "cuda":
        from samebits.numerics.gpu import public as on_gpu

        return on_gpu
    if kind == "cpu":
        from samebits.numerics.cpu import public as on_cpu

        return on_cpu
    raise NumericsError(f"samebits.ops has kernels for cuda and cpu, not for {kind}")


def _rows(x: Tensor, dim: int) -> tuple[Tensor, int]:
    """x with `dim` last, as [rows, width]; and `dim` counted from the front."""
    place = dim % x.dim()
    moved = x.movedim(place, -1)
    return moved.reshape(-1, moved.shape[-1]), place


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """weight * (x / sqrt(mean(x**2) + eps)) over the last dimension. x [..., width], weight [width]."""
    if weight.shape != x.shape[-1:]:
        raise NumericsError(f"norm weight has shape {list(weight.shape)}, the rows are {x.shape[-1]} wide")
    y: Tensor = _kernels(x, weight).rms_norm(x.reshape(-1, x.shape[-1]), weight, eps)
    return y.view(x.shape)


def mean(x: Tensor, dim: int | Sequence[int] = -1, keepdim: bool = False) -> Tensor:
    """Mean over one dimension, or over several: they become one row, in the order given."""
    dims = [one % x.dim() for one in ([dim] if isinstance(dim, int) else dim)]
    if not dims or len(set(dims)) < len(dims):
        raise NumericsError(f"dim must name one or more different dimensions, not {dim}")
    kept = [one for one in range(x.dim()) if one not in dims]
    shape = [x.shape[one] for one in kept]
    width = x.numel() // max(1, torch.Size(shape).numel())
    y: Tensor = _kernels(x).mean(x.permute(*kept, *dims).reshape(-1, width))
    return y.view([1 if one in dims else x.shape[one] for one in range(x.dim())] if keepdim else shape)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """x minus its log-sum-exp over `dim`, one rounded difference in float32."""
    rows, place = _rows(x, dim)
    lse: Tensor = _kernels(x).log_sum_exp(rows)
    values = (rows.float() - lse[:, None]).to(x.dtype)
    shape = x.movedim(place, -1).shape
    return values.view(shape).movedim(-1, place)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]: GEMM clause."""
    if x.shape[-1] != weight.shape[-1] or weight.dim() != 2:
        raise NumericsError(f"linear: x {list(x.shape)} does not fit weight {list(weight.shape)}")
    y: Tensor = _kernels(x, weight, bias).linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a [rows, depth] times b [depth, columns]: GEMM clause. A `b` that is a transposed view is not copied."""
    if a.dim() != 2 or b.dim() != 2:
        raise NumericsError(f"mm wants two matrices, not {list(a.shape)} and {list(b.shape)}")
    return linear(a, b.T)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """a [batch, rows, depth] times b [batch, depth, columns]: every product by itself."""
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0]:
        raise NumericsError(
            f"bmm wants two batches of as many matrices, not {list(a.shape)} and {list(b.shape)}"
        )
    if a.shape[0] == 0:
        return a.new_empty((0, a.shape[1], b.shape[2]))
    return torch.stack([mm(left, right) for left, right in zip(a, b, strict=True)])


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if beta != 1 or alpha != 1 or bias.shape != (b.shape[1],):
        raise NumericsError("BatchInvariant serves addmm with a bias of one row, beta = alpha = 1")
    return linear(a, b.T, bias)


def _mean(x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    wanted = x if dtype is None else x.to(dtype)
    return mean(wanted, tuple(dim) if dim else tuple(range(x.dim())), keepdim)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return log_softmax(x.float() if half_to_float else x, dim)


ATEN = torch.ops.aten
SERVED: dict[Any, Callable[..., Tensor]] = {
    ATEN.mm.default: mm,
    ATEN.addmm.default: _addmm,
    ATEN.bmm.default: bmm,
    ATEN.mean.dim: _mean,
    ATEN._log_softmax.default: _log_softmax,
}


class BatchInvariant(TorchDispatchMode):
    """Within this context torch's mm, addmm, bmm, mean over dimensions and log_softmax (and what torch makes of them:
    linear layers, matmul) are served by this module for bf16, fp16 and fp32 tensors without gradients.

    Every other operator of torch is torch's: attention, convolution, sum and softmax keep no promise.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        served = SERVED.get(func)
        if served is None or args[0].dtype not in DTYPES:
            return func(*args, **(kwargs or {}))
        with torch.no_grad():
            return served(
                *(one.detach() if isinstance(one, Tensor) else one for one in args), **(kwargs or {})
            )
