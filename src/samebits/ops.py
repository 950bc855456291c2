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

import functools
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
        if tensor.is_neg():  # the kernels read the memory behind it, which holds the opposite sign
            raise NumericsError("samebits.ops cannot read a negated view: use resolve_neg()")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise NumericsError("samebits.ops has no gradients: use torch.no_grad() or detach()")
    if kind not in ("cuda", "cpu"):
        raise NumericsError(f"samebits.ops has kernels for cuda and cpu, not for {kind}")
    if kind == "cuda":
        _check_gpu(given[0].device)
    if not all(map(_has_memory, given)):
        raise NumericsError(
            "samebits.ops reads a tensor's memory, and this one has none of its own: it stands for another (as under "
            "tracing or vmap), or is of zeros alone or sparse"
        )
    if kind == "cuda":
        from samebits.numerics.gpu import public as on_gpu

        return on_gpu
    from samebits.numerics.cpu import public as on_cpu

    return on_cpu


def _check_gpu(device: torch.device) -> None:
    """Raises NumericsError for a GPU other than the one whose kernels these are: a launch goes to the current device,
    wherever its tensors lie."""
    current = torch.cuda.current_device()
    if device.index != current:
        raise NumericsError(
            f"samebits.ops runs on the current device, cuda:{current}, and the tensors are on {device}: use "
            f"torch.cuda.set_device({device.index})"
        )
    if current != (home := _gpu_of_kernels()):
        raise NumericsError(
            f"samebits.ops has the kernels of this process on cuda:{home}, where it was used first, not on {device}"
        )


@functools.cache
def _gpu_of_kernels() -> int:
    """The one GPU that kernels of this process are loaded on: the current one at the first call."""
    return torch.cuda.current_device()


def _has_memory(tensor: Tensor) -> bool:
    """Whether its elements, if it has any, lie at an address."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # torch's answer for most kinds that have none
        return False


def _rows(x: Tensor, dim: int) -> tuple[Tensor, int]:
    """x with `dim` last, as [rows, width]; and `dim` counted from the front."""
    place = _place(x, dim)
    moved = x.movedim(place, -1)
    return moved.reshape(moved.shape[:-1].numel(), moved.shape[-1]), place


def _place(x: Tensor, dim: int) -> int:
    """`dim` counted from the front. Raises NumericsError where x has no such dimension."""
    if not -x.dim() <= dim < x.dim():
        raise NumericsError(f"dim {dim} is none of the {x.dim()} dimensions of x")
    return dim % x.dim()


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """weight * (x / sqrt(mean(x**2) + eps)) over the last dimension. x [..., width], weight [width]."""
    if weight.shape != x.shape[-1:]:
        raise NumericsError(f"norm weight has shape {list(weight.shape)}, the rows are {x.shape[-1]} wide")
    kernels = _kernels(x, weight)
    if not x.numel():
        return torch.empty_like(x)
    y: Tensor = kernels.rms_norm(x.reshape(-1, x.shape[-1]), weight, eps)
    return y.view(x.shape)


def mean(x: Tensor, dim: int | Sequence[int] = -1, keepdim: bool = False) -> Tensor:
    """Mean over one dimension, or over several: they become one row, in the order given."""
    dims = [_place(x, one) for one in ([dim] if isinstance(dim, int) else dim)]
    if not dims or len(set(dims)) < len(dims):
        raise NumericsError(f"dim must name one or more different dimensions, not {dim}")
    kept = [one for one in range(x.dim()) if one not in dims]
    shape = [x.shape[one] for one in kept]
    rows, width = torch.Size(shape).numel(), torch.Size(x.shape[one] for one in dims).numel()
    kernels = _kernels(x)
    if not width:
        raise NumericsError("there is no mean of no elements")
    y: Tensor = kernels.mean(x.permute(*kept, *dims).reshape(rows, width)) if rows else x.new_empty(0)
    return y.view([1 if one in dims else x.shape[one] for one in range(x.dim())] if keepdim else shape)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """x minus its log-sum-exp over `dim`, one rounded difference in float32."""
    rows, place = _rows(x, dim)
    kernels = _kernels(x)
    if not x.numel():
        return torch.empty_like(x)
    lse: Tensor = kernels.log_sum_exp(rows)
    values = (rows.float() - lse[:, None]).to(x.dtype)
    shape = x.movedim(place, -1).shape
    return values.view(shape).movedim(-1, place)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]: GEMM clause."""
    if not x.dim() or weight.dim() != 2 or not x.shape[-1] == weight.shape[-1] > 0:
        raise NumericsError(f"linear: x {list(x.shape)} does not fit weight {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise NumericsError(f"linear: bias {list(bias.shape)} does not fit weight {list(weight.shape)}")
    kernels, shape = _kernels(x, weight, bias), (*x.shape[:-1], weight.shape[0])
    if not torch.Size(shape).numel():
        return x.new_empty(shape)
    y: Tensor = kernels.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(shape)


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


def _mv(a: Tensor, b: Tensor) -> Tensor:
    return mm(a, b[:, None])[:, 0]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return mm(a[None], b[:, None])[0, 0]


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
    ATEN.mv.default: _mv,
    ATEN.dot.default: _dot,
    ATEN.addmm.default: _addmm,
    ATEN.bmm.default: bmm,
    ATEN.mean.dim: _mean,
    ATEN._log_softmax.default: _log_softmax,
}
INTO = {func.overloadpacket.out: served for func, served in SERVED.items()}
"""The same, into a tensor that is given as `out`."""
OTHER_RESULTS = tuple(
    overload for packet in (ATEN.mm, ATEN.addmm, ATEN.bmm) for overload in (packet.dtype, packet.dtype_out)
)
"""Products whose result is of another type than what is multiplied (`out_dtype`), of which there is no clause."""


def _is_plain(tensor: Tensor) -> bool:
    """Whether it has values, in rows and columns."""
    return tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type != "meta"


def _into(out: Tensor, y: Tensor) -> Tensor:
    """`y` in `out`, which takes its shape. Raises NumericsError where it is of another type or on another device."""
    if out.dtype != y.dtype or out.device != y.device:
        raise NumericsError(f"out is {out.dtype} on {out.device}, the result {y.dtype} on {y.device}")
    return out.resize_(y.shape).copy_(y)


class BatchInvariant(TorchDispatchMode):
    """Within this context torch's mm, mv, dot, addmm, bmm, mean over dimensions and log_softmax (and what torch makes
    of them: linear layers, matmul) are served by this module for bf16, fp16 and fp32 tensors without gradients, into
    `out` too.

    Every other operator of torch is torch's: attention, convolution, sum and softmax keep no promise. So are tensors
    without values (meta) or of another layout (sparse, nested). Subclasses of tensors take themselves apart, and what
    they are made of is served.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        served = SERVED.get(func) or INTO.get(func)
        if served is None and func not in OTHER_RESULTS:
            return self._parts(func, args, given)
        if types:
            return NotImplemented
        if not all(_is_plain(one) for one in args if isinstance(one, Tensor)) or args[0].dtype not in DTYPES:
            return func(*args, **given)
        if served is None:
            raise NumericsError(
                f"BatchInvariant does not serve {func}: results have the type of what is multiplied"
            )
        out = given.pop("out", None)
        with torch.no_grad():
            y = served(*(one.detach() if isinstance(one, Tensor) else one for one in args), **given)
            return y if out is None else _into(out, y)

    def _parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What is torch's own. In torch.inference_mode() functions that are made of others, such as linear and matmul,
        come here whole: their parts come here in their turn."""
        if func is torch.ops.prim.device.default:  # its only part is itself
            return func(*args, **kwargs)
        with self:
            y = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if y is NotImplemented else y
