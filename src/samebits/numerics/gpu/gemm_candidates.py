"""The candidates of the GEMM clause: which tiles are worth trying where, and how each is launched."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from samebits.numerics.gpu import cublaslt, gemm
from samebits.numerics.gpu.cublaslt_tiles import filling_tiles, tile_numbers
from samebits.numerics.gpu.gemm_problem import ATOM, GemmProblem
from samebits.numerics.gpu.launch import (
    PORTABLE,
    TENSOR_MAPS,
    Binary,
    Interpreted,
    KernelSource,
    blocks,
    descriptor,
    load,
    pointer,
    swizzled_descriptor,
)
from samebits.numerics.gpu.operator import Recipe
from samebits.numerics.gpu.prover import Candidate, Tensors

FILLING_ROWS = range(65, 513)
"""Buckets that try tiles of the library that fill the card: with few tiles an empty place in a wave costs much."""
FILLING_TILES, LIBRARY_OPTIONS = 4, (0, 1)
"""So many of them, with each option of their kernels that was ever the fastest."""
NO_CLUSTER, PAIRS = 2, (3, 5)
"""cublasLtClusterShape_t: programs on their own, and the first of the tiles also in pairs along columns or rows."""

SHARED_BYTES = {"sm_80": 163 << 10, "gfx942": 64 << 10, "gfx950": 160 << 10}
"""Memory of a program by architecture; 227 KiB on the others."""

PARTED_ROWS, PARTED_DEPTH = 8192, 8192
"""From these on a product may be done in parts, half or a quarter of its rows after another."""

POINTERS, DESCRIPTORS, PERSISTENT, HOPPER, AHEAD = "tile", "descriptor", "persistent", "hopper", "ahead"
HOPPER_ROWS = 64
"""Rows of a group of `gemm_hopper`, whose tiles have one group or two."""
HOPPER_REGISTERS = 168
"""Of a thread of `gemm_hopper` at its start: three groups of four warps fill the registers."""
HOPPER_PROCESSORS, LEAST_SHARE = 132, 2 / 3
"""Multiprocessors of the cards that these kernels are for, and the share of their walks that tiles must fill."""
AHEAD_COLUMNS = 64
"""Columns of a group of `gemm_ahead`."""
AHEAD_REGISTERS = 96
"""Of a thread of `gemm_ahead`: the kernels around it must find room beside it."""


EARLY_ROWS, UNEVEN_ROWS = 64, 16
"""Up to so many rows products start early where they can, and up to UNEVEN_ROWS even where their programs do not end
together: there the weights' bytes are nearly all of the time."""


@dataclass(frozen=True)
class Tile:
    """How one kernel cuts a GEMM."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    kind: str = POINTERS
    """how operands are loaded: by pointers, by tensor descriptors, by descriptors in persistent programs, or by a warp
    of persistent programs that does nothing else (`gemm_hopper`, and for few rows `gemm_ahead`)"""
    swap: bool = False
    """weights on the left side of the product"""
    wait: int = 0
    """dependent launch, see gemm.py"""
    prefetch: int = 0
    """elements of each weight row that are asked into the cache before the wait"""
    group: int = 8

    @property
    def name(self) -> str:
        parts = [f"{self.kind} {self.rows}x{self.columns}x{self.depth} w{self.warps} s{self.stages}"]
        parts += ["swapped"] * self.swap
        parts += [f"wait {self.wait}"] * bool(self.wait) + [f"prefetch {self.prefetch}"] * bool(self.prefetch)
        return " ".join(parts)

    @property
    def targets(self) -> tuple[str, ...]:
        """Architectures for which this tile is meant."""
        if self.kind in (HOPPER, AHEAD):
            return ("sm_90",)
        if self.kind != POINTERS:
            return TENSOR_MAPS
        return ("sm_90", "sm_100") if self.wait else PORTABLE

    def fits(self, problem: GemmProblem, bucket: int, target: str) -> bool:
        """Whether this tile can compute a problem on an architecture."""
        size = problem.act.itemsize
        shared = (
            (self.rows + self.columns) * self.depth * size * max(1, self.stages - (self.kind == POINTERS))
        )
        if target not in self.targets or shared > SHARED_BYTES.get(target, 227 << 10) - 2048:
            return False
        if self.kind != POINTERS and (problem.depth * size % 16 or size == 4):
            return False
        if self.kind in (HOPPER, AHEAD) and (problem.bias or problem.depth % self.depth):
            return False
        if self.kind == AHEAD and bucket > self.rows:
            return False
        whole = problem.columns % self.columns == 0 and problem.depth >= self.prefetch
        return not self.wait or (whole and size == 2)

    def source(self, problem: GemmProblem, bucket: int, leaves: int = 1) -> KernelSource:
        """The binary for a problem, as one chain or as a tree of leaves; most problems and buckets share one."""
        units = (unit_of(problem.columns), unit_of(problem.depth))
        shape = (*units, self.rows, self.columns, self.depth, self.group)
        dependent = (leaves, self.wait, self.prefetch, 32 * self.warps)
        act, out = pointer(problem.act), pointer(problem.out)
        lengths = ("i32", "i32", "i32")
        arguments: tuple[str, ...]
        constants: tuple[object, ...]
        if self.kind == POINTERS:
            function = gemm.tile_gemm
            arguments = (act, act, act, out, *lengths)
            constants = (*shape, self.swap, *self.masks(problem, bucket), problem.bias, *dependent)
        elif self.kind == DESCRIPTORS:
            function = gemm.descriptor_gemm
            arguments = (*self.maps(problem), act, act, out, *lengths)
            constants = (*shape, self.swap, problem.bias, *dependent)
        elif self.kind == HOPPER:
            return self.hopper_source(problem, leaves)
        elif self.kind == AHEAD:
            return self.ahead_source(problem, leaves)
        else:
            function = gemm.persistent_gemm
            arguments = (*self.maps(problem), act, out, *lengths, "i32")
            constants = (*shape, self.swap, problem.bias, leaves)
        return KernelSource(function, arguments, constants, self.warps, self.stages, self.wait > 0)

    def hopper_source(self, problem: GemmProblem, leaves: int) -> KernelSource:
        from samebits.numerics.gpu.gemm_hopper import hopper_gemm  # the interpreter knows no Gluon

        x, weight = ((HOPPER_ROWS, self.depth), (self.columns, self.depth))
        maps = (swizzled_descriptor(problem.act, x), swizzled_descriptor(problem.act, weight))
        units = (unit_of(problem.columns), unit_of(problem.depth))
        return KernelSource(
            hopper_gemm, (*maps, pointer(problem.out), "i32", "i32", "i32"),
            (*units, self.columns, self.depth, self.group, self.stages, leaves, self.rows // HOPPER_ROWS),
            self.warps, 1, False, HOPPER_REGISTERS,
        )  # fmt: skip

    def ahead_source(self, problem: GemmProblem, leaves: int) -> KernelSource:
        from samebits.numerics.gpu.gemm_ahead import ahead_gemm

        x, weight = ((self.rows, self.depth), (AHEAD_COLUMNS, self.depth))
        maps = (swizzled_descriptor(problem.act, x), swizzled_descriptor(problem.act, weight))
        units = (unit_of(problem.columns), unit_of(problem.depth))
        return KernelSource(
            ahead_gemm, (*maps, pointer(problem.out), "i32", "i32", "i32"),
            (*units, self.rows, self.columns, self.depth, self.stages, leaves, self.wait),
            self.warps, 1, self.wait > 0, AHEAD_REGISTERS,
        )  # fmt: skip

    def masks(self, problem: GemmProblem, bucket: int) -> tuple[bool, bool, bool]:
        """Whether the last tile of rows, columns, depth reaches beyond the matrices."""
        return (
            bucket % self.rows != 0,
            problem.columns % self.columns != 0,
            problem.depth % self.depth != 0,
        )

    def maps(self, problem: GemmProblem) -> tuple[str, str]:
        """Types of the tensor descriptors of x and weight."""
        return (
            descriptor(problem.act, (self.rows, self.depth)),
            descriptor(problem.act, (self.columns, self.depth)),
        )


def unit_of(length: int) -> int:
    """What the compiler is told that a length is a multiple of."""
    return ATOM if length % ATOM == 0 else 1


@functools.cache
def processors(device: torch.device) -> int:
    """How many programs run side by side; two in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def launch_tile(
    kernel: Binary | Interpreted, tile: Tile, problem: GemmProblem, inputs: Tensors, outputs: Tensors
) -> None:
    """Launch a tile's kernel on (x, weight[, bias]) -> (out,)."""
    x, weight = inputs[0], inputs[1]
    bias, out = inputs[2] if problem.bias else x, outputs[0]
    rows = x.shape[0]
    unit, depth_unit = unit_of(problem.columns), unit_of(problem.depth)
    lengths = (rows, problem.columns // unit, problem.depth // depth_unit)
    tiles = blocks(rows, tile.rows) * blocks(problem.columns, tile.columns)
    if tile.kind == POINTERS:
        kernel.launch((tiles, 1, 1), x, weight, bias, out, *lengths)
        return
    rows_of_box = HOPPER_ROWS if tile.kind == HOPPER else tile.rows
    columns_of_box = AHEAD_COLUMNS if tile.kind == AHEAD else tile.columns
    maps = (mapped(x, (rows_of_box, tile.depth)), mapped(weight, (columns_of_box, tile.depth)))
    if tile.kind == DESCRIPTORS:
        kernel.launch((tiles, 1, 1), *maps, weight, bias, out, *lengths)
        return
    programs = min(tiles, processors(out.device))
    if tile.kind in (HOPPER, AHEAD):
        kernel.launch((programs, 1, 1), *maps, out, *lengths)
        return
    kernel.launch((programs, 1, 1), *maps, bias, out, *lengths, programs)


def mapped(tensor: Tensor, block: tuple[int, int]) -> TensorDescriptor:
    """A matrix as the copy engine sees it; outside of it lie zeros."""
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), list(block))


def tile_recipe(tile: Tile, problem: GemmProblem, bucket: int) -> Recipe:
    source = tile.source(problem, bucket)

    def make() -> Candidate:
        kernel = load(source)

        def run(inputs: Tensors, outputs: Tensors) -> None:
            launch_tile(kernel, tile, problem, inputs, outputs)

        return Candidate(tile.name, kernel.digest, run)

    return Recipe(tile.name, make, fallback=tile == PLAIN)


def library_recipe(problem: GemmProblem, bucket: int, text: str, place: int, parts: int = 1) -> Recipe:
    """An algorithm of cuBLASLt by its bytes, for one `parts`-th of the rows after another."""
    kind = "" if parts == 1 else f" in {parts}"

    def make() -> Candidate:
        algorithm = cublaslt.algorithm_of(text)
        product = cublaslt.matmul(problem, bucket // parts)

        def run(inputs: Tensors, outputs: Tensors) -> None:
            bias = inputs[2] if problem.bias else None
            for x, out in zip(inputs[0].chunk(parts), outputs[0].chunk(parts), strict=True):
                product.run(algorithm, x, inputs[1], bias, out)

        return Candidate(f"cublaslt {place}{kind}", f"cublaslt {cublaslt.version()}{kind} {text}", run)

    return Recipe(f"cublaslt {place}{kind}", make)


def parted_recipes(problem: GemmProblem, bucket: int, count: int) -> Iterator[Recipe]:
    """What the library proposes for a half and a quarter of many rows of a deep product: a part fills the card, too,
    its rows stay in the second-level cache, and the algorithms are others."""
    if torch.version.cuda is None or (problem.bias and problem.out is not problem.act):
        return
    for parts in (2, 4) if bucket >= PARTED_ROWS and problem.depth >= PARTED_DEPTH else ():
        for place, algorithm in enumerate(cublaslt.matmul(problem, bucket // parts).proposals(count)):
            yield library_recipe(problem, bucket, algorithm.text, place, parts)


def restored_library_recipe(problem: GemmProblem, bucket: int, name: str, identity: str) -> Recipe:
    """The recipe that a stored proof names."""
    place, parts = int(name.split()[1]), cublaslt.parts_of(name)
    return library_recipe(problem, bucket, identity.split()[-1], place, parts)


def filling_algorithms(
    product: cublaslt.Matmul, proposal: cublaslt.Algorithm
) -> Iterator[cublaslt.Algorithm]:
    """A proposal with tiles that fill this device."""
    device = torch.device("cuda", torch.cuda.current_device())
    tiles = filling_tiles(product.problem.columns, product.rows, processors(device), FILLING_TILES)
    for tile in tiles:
        for cluster in (NO_CLUSTER, *PAIRS) if tile == tiles[0] else (NO_CLUSTER,):
            for option in LIBRARY_OPTIONS:
                found = product.arranged(proposal, tile_numbers()[tile], option, cluster)
                if found is not None:
                    yield found


def library_recipes(problem: GemmProblem, bucket: int, count: int) -> Iterator[Recipe]:
    """What the library proposes for a product, at some buckets also tiles of its that fill the card. Nothing where
    there is no library, nor for a bias of another type than the result, which it would read as the result's."""
    if torch.version.cuda is None or (problem.bias and problem.out is not problem.act):
        return
    product = cublaslt.matmul(problem, bucket)
    proposals = product.proposals(count)
    texts = dict.fromkeys(found.text for found in proposals)
    if proposals and bucket in FILLING_ROWS:
        texts |= dict.fromkeys(found.text for found in filling_algorithms(product, proposals[0]))
    for place, text in enumerate(texts):
        yield library_recipe(problem, bucket, text, place)


def tiles_for(problem: GemmProblem, bucket: int) -> tuple[Tile, ...]:
    """The tiles that are worth trying, the likely fastest first; the last one is portable and fits everything."""
    if problem.act is torch.float32:
        return FLOAT32_TILES
    limits = ((16, DECODE), (32, DECODE_32), (64, DECODE_64), (256, MIDDLE))
    chosen = next((tiles for limit, tiles in limits if bucket <= limit), PREFILL)
    return (*chosen, PLAIN)


def ends_together(tiles: int) -> bool:
    """Whether programs that walk so many tiles end at about the same time. With 160 tiles most multiprocessors would
    wait for the 28 that have a second one."""
    walks = blocks(tiles, HOPPER_PROCESSORS)
    return walks == 1 or tiles >= LEAST_SHARE * walks * HOPPER_PROCESSORS


def tiles_on(problem: GemmProblem, bucket: int, target: str) -> list[Tile]:
    """The tiles that are tried on an architecture. Of few rows, kernels that start early pay only among their like:
    beside another kernel each of them costs a layer more than it saves, which one product timed by itself does not
    show. So where there are any, nothing stands beside them but the portable tile. Where their tiles would leave most
    multiprocessors idle at the end, the usual kernels serve."""
    fitting = [tile for tile in tiles_for(problem, bucket) if tile.fits(problem, bucket, target)]
    early = [tile for tile in fitting if tile.kind == AHEAD] if bucket <= EARLY_ROWS else []
    if bucket > UNEVEN_ROWS:
        early = [tile for tile in early if ends_together(blocks(problem.columns, tile.columns))]
    return [*early, PLAIN] if early else [tile for tile in fitting if tile.kind != AHEAD]


PLAIN = Tile(64, 64, 32, 4, 3)
FLOAT32_TILES = (Tile(16, 32, 32, 4, 3), Tile(64, 64, 16, 4, 3), Tile(32, 32, 16, 4, 2))

DECODE = (
    Tile(16, 64, 128, 4, 8, AHEAD, swap=True, wait=2),
    Tile(16, 64, 128, 4, 8, swap=True, wait=1),
    Tile(16, 64, 128, 4, 8, swap=True, wait=1, prefetch=512),
    Tile(16, 64, 128, 4, 8, swap=True, wait=2),
    Tile(16, 64, 256, 4, 5, DESCRIPTORS, swap=True, wait=1),
    Tile(16, 64, 256, 4, 5, DESCRIPTORS, swap=True, wait=2),
    Tile(16, 64, 128, 4, 5, swap=True, wait=1, prefetch=512),
    Tile(16, 64, 128, 4, 5, DESCRIPTORS, swap=True, wait=1),
    Tile(16, 128, 128, 4, 4, swap=True, wait=1),
    Tile(16, 64, 128, 4, 5, swap=True),
)
"""At most 16 rows: most loads in flight win."""

DECODE_32 = (
    Tile(32, 64, 128, 4, 8, AHEAD, swap=True, wait=1),
    Tile(32, 64, 128, 4, 8, DESCRIPTORS, swap=True, wait=1),
    Tile(32, 64, 128, 4, 8, DESCRIPTORS, swap=True, wait=2, prefetch=512),
    Tile(32, 64, 256, 4, 4, DESCRIPTORS, swap=True, wait=1),
    Tile(32, 64, 64, 4, 12, swap=True, wait=1),
    Tile(32, 64, 128, 4, 5, swap=True),
)

DECODE_64 = (
    Tile(64, 64, 128, 4, 6, AHEAD, swap=True, wait=1),
    Tile(64, 64, 128, 4, 6, DESCRIPTORS, swap=True, wait=1),
    Tile(64, 64, 128, 4, 5, DESCRIPTORS, swap=True, wait=2),
    Tile(64, 32, 256, 4, 4, DESCRIPTORS, wait=1),
    Tile(64, 32, 256, 4, 4, DESCRIPTORS, wait=2, prefetch=512),
    Tile(64, 64, 128, 4, 4),
)

MIDDLE = (
    Tile(64, 128, 64, 4, 9, HOPPER),
    Tile(64, 128, 128, 4, 4, DESCRIPTORS),
)
"""The library's tiles win nearly everywhere, if one fills the card."""

PREFILL = (
    Tile(128, 256, 64, 8, 3, PERSISTENT),
    Tile(256, 128, 64, 8, 4, PERSISTENT),
)
