"""Dummy weights: seeded random weights for any config, made so that an error shows in the output.

Weight number i of a tensor is a function of the seed, the tensor's name and i, in integer arithmetic and exact
float conversions only: the same on every machine, in every process, with every version of the libraries, and
however the tensors are cut or fused. A 64-bit mix (splitmix64) of a counter gives two weights, each the sum of two
16-bit integers around zero (a triangular distribution), times a float32 scale.

Scales are chosen so that scores of the attention are spread (one wrong key, value or position changes the
output), some channels are outliers as in trained models, every layer adds as much to the residual as the
others, and the logits are spread enough for greedy text to depend on its whole context.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samebits.models.checkpoint import whole
from samebits.models.family import WeightNames
from samebits.models.spec import ModelSpec
from samebits.models.weights import Cut, expected_shapes

GENERATOR_VERSION = 1
"""A change of any number below is a change of this version."""
UNIT_DEVIATION = 65536.0 / math.sqrt(6.0)
"""Standard deviation of the sum of two uniform 16-bit integers."""
SCORE_GAIN = 2.0
"""Queries and keys have this deviation, so scores have its square."""
LOGIT_DEVIATION = 3.0
BIAS_DEVIATION = 0.5
NORM_DEVIATION = 0.1
"""Of norm weights, around their mean."""
OUTLIER_GAIN = 6.0
OUTLIER_EVERY = 64
"""One in this many channels, on average, is an outlier."""
ATTENTION_GAIN = 3.0
"""Of what a layer adds to the residual, against the embedding: large, so that under tied embeddings the last
token does not recommend itself."""
DOWN_GAIN = 5.0
"""The same, and the product of silu(gate) and up has a deviation of about a half."""
CHUNK_WEIGHTS = 1 << 14
"""Weights made at a time, few enough to stay in a core's cache, and for torch to copy in the calling thread.
It changes no weight."""
DEVICE_CHUNK_WEIGHTS = 1 << 26
"""The same on a GPU: bounds the memory of the work, and keeps launches few."""

GOLDEN = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Recipe:
    """How the values of one tensor are spread: mean + deviation * unit, outliers times `outlier_gain`."""

    deviation: float
    mean: float = 0.0
    outlier_gain: float = 1.0
    """factor of the outlier channels, which are rows of a matrix or entries of a vector"""


@dataclass(frozen=True)
class DummySource:
    """Seeded random tensors for every name that a spec expects."""

    spec: ModelSpec
    names: WeightNames
    seed: int
    shapes: Mapping[str, tuple[int, ...]]
    device: torch.device

    def tensor(self, name: str, take: Cut = whole) -> Tensor:
        """What `take` takes of the named tensor, in the storage dtype of the spec, on `device`. Values are the same
        on every device, and of a part those of the whole."""
        recipe, shape = recipe_for(self.spec, self.names, name), self.shapes[name]
        dtype: torch.dtype = getattr(torch, self.spec.dtype)
        if self.device.type == "cpu":
            return take(_tensor(name, shape, recipe, self.seed, dtype))
        part = part_taken(shape, take)
        made = device_tensor(name, shape, recipe, self.seed, dtype, self.device, part)
        return take(made) if part is None else made

    def description(self) -> dict[str, str]:
        """What stands for the digests of weight files in the plan."""
        return {"dummy": f"generator {GENERATOR_VERSION}, seed {self.seed}"}


def dummy_source(
    spec: ModelSpec, names: WeightNames, seed: int, device: torch.device | None = None
) -> DummySource:
    """The source for a spec; the tensors are made where they are wanted (None: on the CPU)."""
    return DummySource(spec, names, seed, expected_shapes(spec, names), device or torch.device("cpu"))


def recipe_for(spec: ModelSpec, names: WeightNames, name: str) -> Recipe:
    """The spread of a tensor's values, by the part that it plays."""
    fan_in = 1.0 / math.sqrt(spec.hidden)

    def plays(pattern: str) -> bool:
        start, _, end = pattern.partition("{layer}")
        return name.startswith(start) and name.removesuffix(".weight").endswith(end.removesuffix(".weight"))

    if name.endswith(".bias"):
        return Recipe(BIAS_DEVIATION)
    if name == names.final_norm:
        return Recipe(NORM_DEVIATION, mean=1.0)
    if plays(names.query_norm) or plays(names.key_norm):
        return Recipe(NORM_DEVIATION, mean=SCORE_GAIN)
    if plays(names.attention_norm) or plays(names.mlp_norm):
        return Recipe(NORM_DEVIATION, mean=1.0, outlier_gain=OUTLIER_GAIN)
    if name in (names.embedding, names.output + ".weight"):
        return Recipe(LOGIT_DEVIATION * fan_in)
    if plays(names.query) or plays(names.key):
        return Recipe(SCORE_GAIN * fan_in)
    if plays(names.attention_output):
        return Recipe(ATTENTION_GAIN / math.sqrt(spec.heads.query_width))
    if plays(names.down):
        return Recipe(DOWN_GAIN / math.sqrt(spec.intermediate), outlier_gain=OUTLIER_GAIN)
    return Recipe(fan_in)


def _tensor(
    name: str, shape: tuple[int, ...], recipe: Recipe, seed: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Made a few rows at a time, so that the float32 values stay in cache until they are rounded to `dtype`."""
    rows = shape[0]
    width = math.prod(shape[1:])
    key = _key(seed, name)
    scale, mean, gain = (
        np.float32(value) for value in (recipe.deviation / UNIT_DEVIATION, recipe.mean, recipe.outlier_gain)
    )
    draws = _mix(_key(seed, name + "/outliers"), np.arange(rows, dtype=np.uint64))
    outliers = draws % np.uint64(OUTLIER_EVERY) == 0
    tensor = torch.empty((rows, width), dtype=dtype)
    step = max(1, CHUNK_WEIGHTS // width)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        values = _units(key, first * width, last * width).reshape(last - first, width)
        values *= scale
        if mean:
            values += mean
        if gain != 1.0:
            values[outliers[first:last]] *= gain
        tensor[first:last] = torch.from_numpy(values)
    return tensor.reshape(shape)


@dataclass(frozen=True)
class Part:
    """A block of a matrix."""

    row: int
    """the first one"""
    rows: int
    column: int
    columns: int


def part_taken(shape: tuple[int, ...], take: Cut) -> Part | None:
    """What `take` takes of a matrix, read off one without memory. None where that is no block of it, or one whose
    weights lie in halves of pairs: then all of it must be made."""
    if len(shape) != 2:
        return None
    matrix = torch.empty(shape, device="meta")
    taken = take(matrix)
    if taken._base is not matrix or taken.dim() != 2 or taken.stride() != matrix.stride():
        return None
    row, column = divmod(int(taken.storage_offset()), shape[1])
    part = Part(row, taken.shape[0], column, taken.shape[1])
    halves = part.columns != shape[1] and (shape[1] % 2 or column % 2 or part.columns % 2)
    return None if halves else part


def device_tensor(
    name: str,
    shape: tuple[int, ...],
    recipe: Recipe,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    part: Part | None = None,
) -> Tensor:
    """What `_tensor` makes, or a part of it, with torch's operators on any device: products and sums are rounded one by
    one in both."""
    whole_rows, width = shape[0], math.prod(shape[1:])
    block = part or Part(0, whole_rows, 0, width)
    key = _key(seed, name)
    scale = float(np.float32(recipe.deviation / UNIT_DEVIATION))
    rows = torch.arange(whole_rows, dtype=torch.int64, device=device)
    outliers = device_mix(_key(seed, name + "/outliers"), rows) & (OUTLIER_EVERY - 1) == 0
    tensor = torch.empty((block.rows, block.columns), dtype=dtype, device=device)
    step = max(1, DEVICE_CHUNK_WEIGHTS // block.columns)
    for first in range(0, block.rows, step):
        last = min(first + step, block.rows)
        chunk = Part(block.row + first, last - first, block.column, block.columns)
        values = _device_units(key, width, chunk, device).mul_(scale)
        if recipe.mean:
            values.add_(float(np.float32(recipe.mean)))
        if recipe.outlier_gain != 1.0:
            gained = values * float(np.float32(recipe.outlier_gain))
            values = torch.where(outliers[chunk.row : chunk.row + chunk.rows, None], gained, values)
        tensor[first:last] = values
    return tensor.reshape(shape) if part is None else tensor


def _device_units(key: int, width: int, part: Part, device: torch.device) -> Tensor:
    """`_units` of a block of a matrix of so many columns, float32 [rows, columns]."""

    def counted(start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, dtype=torch.int64, device=device)

    if part.columns == width:
        start = part.row * width
        stop = start + part.rows * width
        halves = device_mix(key, counted(start // 2, (stop + 1) // 2)).view(torch.int32)
        halves = halves[start % 2 : start % 2 + stop - start]
    else:
        pairs = counted(part.column // 2, (part.column + part.columns) // 2)
        counters = counted(part.row, part.row + part.rows)[:, None] * (width // 2) + pairs
        halves = device_mix(key, counters).view(torch.int32)
    sums = (halves & 0xFFFF) + ((halves >> 16) & 0xFFFF) - 65535
    return sums.to(torch.float32).view(part.rows, part.columns)


def device_mix(key: int, counters: Tensor) -> Tensor:
    """`_mix` of counters int64, whose memory it takes, as int64 bit patterns."""
    z = counters
    z.mul_(_signed(GOLDEN)).add_(_signed((key + GOLDEN) & MASK64))
    z ^= (z >> 30) & (MASK64 >> 30)
    z.mul_(_signed(0xBF58476D1CE4E5B9))
    z ^= (z >> 27) & (MASK64 >> 27)
    z.mul_(_signed(0x94D049BB133111EB))
    z ^= (z >> 31) & (MASK64 >> 31)
    return z


def _signed(word: int) -> int:
    """The signed number with the same 64 bits."""
    return word - (1 << 64) if word >> 63 else word


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"samebits dummy {seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _units(key: int, start: int, stop: int) -> np.ndarray:
    """float32 integers in [-65535, 65535] for the weights start .. stop - 1; weight i takes the low (even i) or
    high (odd i) half of the mix of i // 2."""
    mixed = _mix(key, np.arange(start // 2, (stop + 1) // 2, dtype=np.uint64))
    quarters = mixed.astype("<u8", copy=False).view("<u2").reshape(-1, 2)
    sums = np.add(quarters[:, 0], quarters[:, 1], dtype=np.float32)
    sums -= np.float32(65535.0)
    return sums[start % 2 : start % 2 + stop - start]


def _mix(key: int, counters: np.ndarray) -> np.ndarray:
    """splitmix64's output function at key + (counter + 1) * golden, all modulo 2^64."""
    z = counters * np.uint64(GOLDEN)
    z += np.uint64((key + GOLDEN) & MASK64)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
