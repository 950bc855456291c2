"""What every launch asks of its tensors. Shapes and strides decide which binary runs, so nothing is guessed."""

from __future__ import annotations

import torch
from torch import Tensor

from samebits.errors import NumericsError

ALIGNMENT = 16
"""Bytes: rows begin at multiples of this, so that one binary serves every tensor."""
ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)


def check_tensor(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...]
) -> Tensor:
    """The tensor, if it is contiguous, 16-byte aligned, of one of the dtypes and of this shape (None: any size)."""
    fits = tensor.dim() == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if tensor.dtype not in dtypes or not fits or not tensor.is_contiguous():
        wanted = [size if size is not None else "any" for size in shape]
        raise NumericsError(
            f"{name} must be contiguous {' or '.join(map(str, dtypes))} {wanted}, "
            f"not {tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())}"
        )
    if tensor.data_ptr() % ALIGNMENT:
        raise NumericsError(f"{name} must begin at a multiple of {ALIGNMENT} bytes")
    return tensor


def result(name: str, out: Tensor | None, like: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """`out` if it is given and fits, else a new tensor on the device of `like`."""
    if out is None:
        return torch.empty(shape, dtype=dtype, device=like.device)
    return check_tensor(name, out, (dtype,), shape)
