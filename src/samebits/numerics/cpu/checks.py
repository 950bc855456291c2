"""What the operators check before they hand addresses to a kernel."""

from __future__ import annotations

import functools
import struct

import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.cpu import attention, keyvalue
from samebits.numerics.operators import HeadLayout, KvLayer


@functools.lru_cache(maxsize=64)
def float_bits(value: float) -> int:
    """The bits of a number rounded to float32."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def check_matrix(name: str, x: Tensor, width: int | None = None) -> tuple[int, int]:
    """(rows, width) of a contiguous float32 CPU matrix. Raises NumericsError."""
    if x.dtype != torch.float32 or x.dim() != 2 or not x.is_contiguous() or x.device.type != "cpu":
        raise NumericsError(
            f"{name} must be a contiguous float32 matrix on CPU, not {x.dtype} {list(x.shape)} on {x.device}"
        )
    rows, found = x.shape
    if width is not None and found != width:
        raise NumericsError(f"{name} has {found} columns, expected {width}")
    return rows, found


def check_batch(batch: RaggedBatch, kv: KvLayer, rows: int) -> None:
    """Raises NumericsError for a batch whose memory is not what the kernels read."""
    wide, narrow = torch.int64, torch.int32
    if not (
        batch.positions.dtype == batch.slots.dtype == wide
        and batch.query_start.dtype == batch.page_table.dtype == narrow
        and batch.row_faults.dtype == torch.uint8
        and batch.positions.shape[0] == batch.slots.shape[0] == batch.row_faults.shape[0] == rows
        and batch.positions.is_contiguous()
        and batch.slots.is_contiguous()
        and batch.query_start.is_contiguous()
        and batch.page_table.is_contiguous()
        and batch.row_faults.is_contiguous()
    ):
        raise NumericsError(f"batch of {rows} rows: a field has the wrong dtype, length or stride")
    if batch.page_tokens != kv.page_tokens:
        raise NumericsError(f"batch pages hold {batch.page_tokens} tokens, the storage's {kv.page_tokens}")


def check_heads(heads: HeadLayout) -> None:
    """Raises NumericsError for a head layout that the kernels do not run."""
    if heads.head_dim % 16 or not 0 < heads.head_dim <= keyvalue.MAX_HEAD_DIM:
        raise NumericsError(
            f"head_dim must be a multiple of 16 up to {keyvalue.MAX_HEAD_DIM}, not {heads.head_dim}"
        )
    if heads.query_heads % heads.kv_heads:
        raise NumericsError(f"{heads.query_heads} query heads cannot share {heads.kv_heads} key-value heads")
    if heads.query_heads // heads.kv_heads > attention.MAX_PAIRS:
        raise NumericsError(f"more than {attention.MAX_PAIRS} query heads share one key-value head")


def widened(weight: Tensor) -> Tensor:
    """A vector of weights as contiguous float32; exact. A model that keeps it so saves the conversion."""
    if weight.dtype == torch.float32 and weight.is_contiguous():
        return weight
    return weight.to(torch.float32).contiguous()
