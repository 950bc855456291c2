"""Launching attention over whole tiles (prefill): the portable kernel, and the one for Hopper."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from samebits.errors import NumericsError
from samebits.numerics.gpu import configuration
from samebits.numerics.gpu.attention_plan import Units
from samebits.numerics.gpu.attention_shape import AttentionShape, Context, softmax_factor
from samebits.numerics.gpu.attention_tiles import attention_tiles
from samebits.numerics.gpu.configuration import Launch, named_source
from samebits.numerics.gpu.launch import (
    TENSOR_MAPS,
    KernelSource,
    descriptor,
    load,
    pointer,
    swizzled_descriptor,
)

HOPPER_ROWS = 128
"""Rows of a tile of the kernel for Hopper: two groups of 64."""
MOST_ELEMENTS = 1 << 31
"""That kernel's places in queries and output are of 32 bits."""


@dataclass(frozen=True)
class TileLaunch:
    """Rows (query tokens times group, padded) of a tile; `described`: blocks are read by tensor descriptors
    (Hopper and later)."""

    rows: int = 64
    warps: int = 4
    stages: int = 2
    described: bool = False

    @property
    def name(self) -> str:
        way = "descriptors" if self.described else "pointers"
        return f"tiles of {self.rows}, {self.warps} warps, {self.stages} stages, {way}"

    def tokens(self, group: int) -> int:
        """Query tokens of a tile."""
        return self.rows // group

    def serves(self, shape: AttentionShape, dtype: torch.dtype, target: str) -> bool:
        """Whether the kernel can be compiled for these heads on this architecture (`sm_90`)."""
        if self.described and not (whole_lines(shape, dtype) and target in TENSOR_MAPS):
            return False
        return self.rows >= shape.group and (self.rows <= 16 or dtype != torch.float32)


@dataclass(frozen=True)
class HopperLaunch:
    """The warp-specialised kernel, and how many key blocks are in flight."""

    stages: int = 4

    @property
    def rows(self) -> int:
        return HOPPER_ROWS

    @property
    def name(self) -> str:
        return f"two groups of {HOPPER_ROWS // 2}, {self.stages} stages"

    def tokens(self, group: int) -> int:
        """Query tokens of a tile."""
        return HOPPER_ROWS // group

    def serves(self, shape: AttentionShape, dtype: torch.dtype, target: str) -> bool:
        """Whether the kernel can be compiled for these heads on this architecture (`sm_90`)."""
        return (
            target == "sm_90"
            and dtype != torch.float32
            and shape.heads.head_dim in (64, 128)
            and shape.key_block_tokens == 64
            and shape.group <= HOPPER_ROWS
        )


AnyTile: TypeAlias = TileLaunch | HopperLaunch

TILE_LAUNCHES: tuple[AnyTile, ...] = (
    HopperLaunch(4),
    HopperLaunch(3),
    TileLaunch(64, 4, 2, True),
    TileLaunch(128, 8, 2, True),
    TileLaunch(128, 4, 2, True),
    TileLaunch(64, 4, 2, False),
    TileLaunch(128, 8, 2, False),
    TileLaunch(16, 4, 2, False),
)


def whole_lines(shape: AttentionShape, dtype: torch.dtype) -> bool:
    """Whether a key's elements are a power of two and fill lines of 128 bytes, as copies by descriptor want."""
    wide = shape.width == shape.heads.head_dim and shape.width * dtype.itemsize >= 128
    return wide and dtype != torch.float32


def default_tile(shape: AttentionShape, dtype: torch.dtype) -> TileLaunch:
    """A portable launch that suits a model's heads. Float32 products have no tensor cores and want small tiles."""
    wide = shape.width > 128
    rows = 16 if dtype == torch.float32 else 64
    rows = max(rows, int(triton.next_power_of_2(shape.group)))
    described = configuration.dependent_launches() and whole_lines(shape, dtype)
    return TileLaunch(rows, 8 if wide else 4, 2, described)


def tile_launches(shape: AttentionShape, dtype: torch.dtype, target: str) -> list[AnyTile]:
    """The launches that may serve a model's heads on an architecture, the likely fastest first."""
    some = [launch for launch in TILE_LAUNCHES if launch.serves(shape, dtype, target)]
    return list(dict.fromkeys([*some, default_tile(shape, dtype)]))


def tiles(
    shape: AttentionShape,
    queries: Tensor,
    context: Context,
    units: Units,
    scale: float,
    output: Tensor,
    launch: AnyTile,
) -> Tensor:
    """Attention of the rows named by `units`, each of at most `launch.tokens(group)` rows; other rows of `output`
    are not touched."""
    if units.units == 0:
        return output
    asked: Any = queries
    keys: Any = context.keys
    values: Any = context.values
    if isinstance(launch, HopperLaunch) or launch.described:
        keys, values = describe(shape, context.keys), describe(shape, context.values)
    if isinstance(launch, HopperLaunch) and queries.numel() >= MOST_ELEMENTS:
        raise NumericsError(
            f"queries of {queries.numel()} elements are more than the kernel for Hopper counts; cut the step into "
            "smaller ones"
        )
    if isinstance(launch, HopperLaunch) and copies_queries(shape):
        asked = TensorDescriptor.from_tensor(queries, query_block(shape))
    places = (units.first, units.count, units.request, context.page_table, context.page_table.stride(0))
    kernel = load(tile_source(shape, queries.dtype, launch))
    arguments = (asked, keys, values, output, context.positions, *places)
    works = units.units * shape.heads.kv_heads
    if isinstance(launch, HopperLaunch):
        programs = min(works, processors(queries.device))
        kernel.launch((programs, 1, 1), *arguments, units.units, softmax_factor(scale))
    else:
        kernel.launch((works, 1, 1), *arguments, softmax_factor(scale))
    return output


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 where there is none."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def tile_source(shape: AttentionShape, dtype: torch.dtype, launch: AnyTile) -> KernelSource:
    """The binary that `tiles` launches."""
    return _tile_source(shape, dtype, launch, configuration.dependent_launches())


@functools.cache
def _tile_source(shape: AttentionShape, dtype: torch.dtype, launch: AnyTile, dependent: bool) -> KernelSource:
    """Kept, for a layer must not wait for its description. `dependent` is what `named_source` finds, too."""
    if isinstance(launch, HopperLaunch):
        return _hopper_source(shape, dtype, launch)
    storage = act = pointer(dtype)
    if launch.described:
        storage = descriptor(dtype, (shape.key_block_tokens, shape.width))
    wide, narrow = pointer(torch.int64), pointer(torch.int32)
    arguments = (act, storage, storage, act, wide, narrow, narrow, narrow, narrow, "i32", "fp32")
    constants = {
        "ROWS": launch.rows,
        "DESCRIBED": launch.described,
        "STAGES": launch.stages,
        **shape.constants(),
    }
    return named_source(attention_tiles, arguments, constants, Launch(launch.warps, launch.stages))


def _hopper_source(shape: AttentionShape, dtype: torch.dtype, launch: HopperLaunch) -> KernelSource:
    from samebits.numerics.gpu.attention_hopper import attention_hopper

    act, wide, narrow = pointer(dtype), pointer(torch.int64), pointer(torch.int32)
    storage = swizzled_descriptor(dtype, (shape.key_block_tokens, shape.width))
    asked = swizzled_descriptor(dtype, query_block(shape)) if copies_queries(shape) else act
    arguments = (asked, storage, storage, act, wide, narrow, narrow, narrow, narrow, "i32", "i32", "fp32")
    constants = {
        "STAGES": launch.stages,
        "COPIED": copies_queries(shape),
        **shape.constants(),
    }
    return named_source(attention_hopper, arguments, constants, Launch(4, 1))


def copies_queries(shape: AttentionShape) -> bool:
    """Whether a group's queries are one box of [tokens, heads, head_dim], which the copy engine can fetch."""
    return HOPPER_ROWS // 2 % shape.group == 0


def query_block(shape: AttentionShape) -> list[int]:
    """That box, of half a tile."""
    return [HOPPER_ROWS // 2 // shape.group, shape.group, shape.heads.head_dim]


def describe(shape: AttentionShape, storage: Tensor, tokens: int = 0) -> Any:
    """A tensor descriptor of KV storage seen as [rows, head_dim], read `tokens` rows at a time, or one key block."""
    if shape.width != shape.heads.head_dim:
        raise NumericsError(
            f"tensor descriptors want a head_dim that is a power of two, not {shape.heads.head_dim}"
        )
    flat = storage.view(-1, shape.heads.head_dim)
    return TensorDescriptor.from_tensor(flat, [tokens or shape.key_block_tokens, shape.width])
