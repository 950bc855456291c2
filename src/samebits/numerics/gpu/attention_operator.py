"""The attention clause for the prover and the tuner.

A *bucket* is the number of query tokens that a program's unit may hold: 1 for decode, more for verify (both through
shared ranges), and `TILES` for prefill, where tiles walk all their splits.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.gpu import attention
from samebits.numerics.gpu.attention import RangeLaunch, default_launches
from samebits.numerics.gpu.attention_plan import Units, split_units
from samebits.numerics.gpu.attention_prefill import (
    AnyTile,
    default_tile,
    tile_launches,
    tile_source,
    tiles,
)
from samebits.numerics.gpu.attention_shape import AttentionShape, Context
from samebits.numerics.gpu.gemm_problem import floats_of, hashed_words
from samebits.numerics.gpu.launch import KernelSource, load, target_name
from samebits.numerics.gpu.operator import Recipe, Round, Workload
from samebits.numerics.gpu.prover import Candidate, Case, Output, Proof, Tensors, Trial

TILES = 0
"""The bucket of prefill."""
TILE_ROWS = (16, 32, 64, 128)
RANGE_OPTIONS = ((2, 3), (2, 2), (4, 5))
"""(warps, stages) of shared ranges."""
RANGES_A_PROCESSOR = (2, 4)
UNIT_INPUTS = 6
"""Inputs before the units: queries, keys, values, positions, page table, row's request."""
CAPACITY = 4096
FEWER_PROGRAMS = (3, 7)
"""Programs a key-value head with which a proof's cases of decode have pairs of every kind: whole ones, some whose
beginning is handed on, and some that are folded from partials. A whole device has more programs than such a case has
splits; the binary is the same."""
FEWER_CLAIMING = (1, 2)
"""The same for programs that claim: chained runs of several splits and of one."""


@dataclass(frozen=True)
class AttentionProblem:
    """Attention of one model's heads on one device."""

    shape: AttentionShape
    act: torch.dtype

    @property
    def key(self) -> str:
        heads = self.shape.heads
        return (
            f"{heads.query_heads}/{heads.kv_heads} heads of {heads.head_dim}, pages of {self.shape.page_tokens}, "
            f"splits of {self.shape.split_tokens}, {str(self.act).removeprefix('torch.')}"
        )

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.shape.heads.head_dim)


@dataclass(frozen=True)
class Ragged:
    """Rows of several requests: tokens in the cache before them, and their own number."""

    computed: tuple[int, ...]
    query: tuple[int, ...]


def borders(split: int, block: int, tokens: int) -> Ragged:
    """Units of `tokens` rows that end at, before and after every kind of border, and within a key block."""
    ends = sorted(
        {end + step for end in (block, split, split + block, 3 * split) for step in (-1, 0, 1)}
        | {9 * split + 5, split + block // 2 + 8, 3 * split + block // 4 + 4}
    )
    ends = [end for end in ends if end >= tokens]
    return Ragged(tuple(end - tokens for end in ends), (tokens,) * len(ends))


def prefills(split: int, block: int) -> Ragged:
    """Chunks that begin and end at, before and after borders."""
    return Ragged(
        (0, split - 1, 2 * split, block + 1, 4 * split - 3), (split + 9, 3, block + 1, 2 * split, 70)
    )


KINDS = ("sharp", "cancelling", "wide")


def drawn(seed: int, shape: tuple[int, ...], exponents: tuple[int, int], device: torch.device) -> Tensor:
    """float32 of either sign and of binary exponents from `exponents`, made by integer arithmetic."""
    return floats_of(hashed_words(seed, 0, math.prod(shape), device), exponents, torch.float32).view(shape)


def kv_values(kind: str, seed: int, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(keys, values) float32 [tokens, kv heads, head_dim] on which a wrong order shows.

    `cancelling`: neighbouring keys are nearly equal and their values nearly opposite, so that outputs are small
    differences of large sums. `wide`: magnitudes over many powers of two, subnormals of the activation among them.
    """
    keys = drawn(seed, shape, (-2, 1), device)
    values = drawn(seed + 1, shape, (-24, 6) if kind == "wide" else (-2, 1), device)
    keys[..., 3] *= 4.0
    if kind == "wide":
        values[..., 5] *= 2.0**-126
    if kind == "cancelling":
        pairs = shape[0] // 2
        keys[1 : 2 * pairs : 2] = keys[0 : 2 * pairs : 2] * (1 + 2.0**-7)
        values[1 : 2 * pairs : 2] = -values[0 : 2 * pairs : 2] * (1 - 2.0**-7)
    return keys, values


def make_case(problem: AttentionProblem, kind: str, ragged: Ragged, seed: int, device: torch.device) -> Case:
    """A case over shuffled pages; slots that no row has written hold NaN."""
    shape = problem.shape
    heads, page = shape.heads, shape.page_tokens
    lengths = [a + b for a, b in zip(ragged.computed, ragged.query, strict=True)]
    counts = [-(-length // page) for length in lengths]
    places = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(seed))
    table = torch.full((len(lengths), max(counts)), -1, dtype=torch.int32)
    stored = torch.full((2, sum(counts) + 1, heads.kv_heads, page, heads.head_dim), math.nan, device=device)
    taken = 0
    for request, (length, pages) in enumerate(zip(lengths, counts, strict=True)):
        table[request, :pages] = places[taken : taken + pages]
        pair = kv_values(kind, seed + 7 * request, (length, heads.kv_heads, heads.head_dim), device)
        for number in range(pages):
            part = slice(number * page, min(length, (number + 1) * page))
            width = part.stop - part.start
            for side in range(2):
                stored[side, int(places[taken + number]), :, :width] = pair[side][part].transpose(0, 1)
        taken += pages
    rows = sum(ragged.query)
    queries = drawn(seed + 3, (rows, heads.query_heads, heads.head_dim), (-1, 2), device)
    positions = [p for a, b in zip(ragged.computed, ragged.query, strict=True) for p in range(a, a + b)]
    owners = [request for request, count in enumerate(ragged.query) for _ in range(count)]
    start = np.concatenate([[0], np.cumsum(ragged.query)])
    act = problem.act
    inputs = [
        queries.to(act),
        stored[0].to(act),
        stored[1].to(act),
        torch.tensor(positions),
        table,
        torch.tensor(owners, dtype=torch.int32),
    ]
    for tokens in unit_sizes(problem, ragged):
        units = split_units(start, np.array(positions), np.arange(len(lengths)), tokens)
        inputs.extend(torch.from_numpy(part.copy()) for part in units)
    outputs = (Output((rows, heads.query_heads, heads.head_dim), act),)
    return Case(kind, tuple(tensor.to(device) for tensor in inputs), outputs)


def unit_sizes(problem: AttentionProblem, ragged: Ragged) -> list[int]:
    """Query tokens of the units that stand behind the other inputs: of shared ranges, then of each tile's height."""
    return [max(ragged.query), *(max(1, rows // problem.shape.group) for rows in TILE_ROWS)]


def context_of(inputs: Tensors) -> Context:
    return Context(inputs[1], inputs[2], inputs[3], inputs[4])


def units_of(inputs: Tensors, number: int) -> Units:
    return Units(*inputs[UNIT_INPUTS + 3 * number : UNIT_INPUTS + 3 * number + 3])


def identity(*sources: KernelSource) -> str:
    """A digest of all binaries that a candidate launches."""
    return hashlib.sha256(" ".join(load(source).digest for source in sources).encode()).hexdigest()


def reference_candidate(problem: AttentionProblem) -> Candidate:
    """The clause on this device."""

    def run(inputs: Tensors, outputs: Tensors) -> None:
        attention.reference(
            problem.shape, inputs[0], context_of(inputs), inputs[5], problem.scale, outputs[0]
        )

    return Candidate("reference", identity(attention.reference_source(problem.shape, problem.act)), run)


def tile_candidate(problem: AttentionProblem, launch: AnyTile) -> Candidate:
    """Tiles of one of TILE_ROWS."""
    number = 1 + TILE_ROWS.index(launch.rows)

    def run(inputs: Tensors, outputs: Tensors) -> None:
        units = units_of(inputs, number)
        tiles(problem.shape, inputs[0], context_of(inputs), units, problem.scale, outputs[0], launch)

    return Candidate(launch.name, identity(tile_source(problem.shape, problem.act, launch)), run)


def range_launches(shape: AttentionShape, tokens: int, processors: int) -> list[RangeLaunch]:
    """The launches that may serve units of `tokens` rows."""
    rows = shape.rows_for(tokens)
    return [
        RangeLaunch(each * processors, rows, *options)
        for each in RANGES_A_PROCESSOR
        for options in RANGE_OPTIONS
    ]


def range_candidate(
    problem: AttentionProblem,
    tokens: int,
    launch: RangeLaunch,
    units: int,
    device: torch.device,
    capacity: int = CAPACITY,
) -> Candidate:
    """Shared ranges, planned anew at each run. `units`: the most that an input has; `capacity`: partials that have
    room."""
    shape = problem.shape
    claims = capacity if launch.specialised else 0
    buffers = attention.range_buffers(shape, units, tokens, launch.programs, capacity, device, claims)

    def run(inputs: Tensors, outputs: Tensors) -> None:
        found = units_of(inputs, 0)
        attention.plan_ranges(shape, inputs[3], inputs[4], found, buffers, launch)
        attention.shared(
            shape, inputs[0], context_of(inputs), found, problem.scale, outputs[0], buffers, launch
        )

    source = attention.range_source(shape, problem.act, buffers.stride, launch)
    return Candidate(range_name(launch), identity(source), run)


def range_name(launch: RangeLaunch) -> str:
    if launch.specialised:
        return f"{launch.programs} programs that claim, partials folded {launch.together} by {launch.beside}"
    return f"{launch.programs} ranges of {launch.rows} rows, {launch.warps} warps, {launch.stages} stages"


class AttentionOperator:
    """Attention on one device."""

    clause = "attention"

    def __init__(self, device: torch.device, units: int = 256) -> None:
        self.device = device
        self._units = units

    def _processors(self) -> int:
        if self.device.type != "cuda":
            return 2
        return int(torch.cuda.get_device_properties(self.device).multi_processor_count)

    def sources(self, problem: AttentionProblem, buckets: Sequence[int]) -> Iterable[KernelSource]:
        yield attention.reference_source(problem.shape, problem.act)
        for bucket in buckets:
            if bucket == TILES:
                for tile in tile_launches(problem.shape, problem.act, target_name()):
                    yield tile_source(problem.shape, problem.act, tile)
            else:
                stride = bucket * problem.shape.group
                for launch in range_launches(problem.shape, bucket, 1):
                    yield attention.range_source(problem.shape, problem.act, stride, launch)

    def recipes(self, problem: AttentionProblem, bucket: int) -> Iterable[Recipe]:
        if bucket == TILES:
            for tile in tile_launches(problem.shape, problem.act, target_name()):
                yield Recipe(tile.name, functools.partial(tile_candidate, problem, tile))
            return
        for launch in range_launches(problem.shape, bucket, self._processors()):
            make = functools.partial(range_candidate, problem, bucket, launch, self._units, self.device)
            yield Recipe(range_name(launch), make)

    def restore(self, problem: AttentionProblem, bucket: int, name: str, identity: str) -> Recipe | None:
        return next((recipe for recipe in self.recipes(problem, bucket) if recipe.name == name), None)

    def rounds(self, problem: AttentionProblem, buckets: Sequence[int]) -> Iterator[Round]:
        reference = reference_candidate(problem)
        for bucket in buckets:
            yield Round(
                bucket,
                Trial.of(reference, proof_cases(problem, bucket, self.device)),
                functools.partial(timing_workload, problem, bucket, self.device),
            )


def proof_cases(problem: AttentionProblem, bucket: int, device: torch.device) -> list[Case]:
    """Every kind of data over every kind of border."""
    shape = problem.shape
    split, block = shape.split_tokens, shape.key_block_tokens
    ragged = prefills(split, block) if bucket == TILES else borders(split, block, bucket)
    return [make_case(problem, kind, ragged, 100 * number, device) for number, kind in enumerate(KINDS)]


def with_fewer_programs(shape: AttentionShape, launch: RangeLaunch) -> list[RangeLaunch]:
    """The launch itself, and the same binary over longer ranges or more claims for each program."""
    fewer = FEWER_CLAIMING if launch.specialised else FEWER_PROGRAMS
    return [launch, *(replace(launch, programs=each * shape.heads.kv_heads) for each in fewer)]


def prove_defaults(
    shape: AttentionShape, act: torch.dtype, processors: int, device: torch.device
) -> list[Proof]:
    """Hold the launches that the engine uses against the clause's reference on this device. Raises `NumericsError`
    that names the shape and the first differing element. Takes about a second once the kernels are compiled."""
    problem = AttentionProblem(shape, act)
    reference = reference_candidate(problem)
    prefill = Trial.of(reference, proof_cases(problem, TILES, device))
    wanted = [(prefill, tile_candidate(problem, default_tile(shape, act)))]
    decode = Trial.of(reference, proof_cases(problem, 1, device))
    units = decode.cases[0].inputs[UNIT_INPUTS].shape[0]
    for ranges in default_launches(shape, act, 1, processors):
        for launch in with_fewer_programs(shape, ranges):
            wanted.append((decode, range_candidate(problem, 1, launch, units, device)))
    proofs = []
    for trial, candidate in wanted:
        verdict = trial.prove(candidate)
        if not isinstance(verdict, Proof):
            raise NumericsError(f"attention, {problem.key}: {candidate.name} is not proven: {verdict.reason}")
        proofs.append(verdict)
    return proofs


def timing_workload(problem: AttentionProblem, bucket: int, device: torch.device) -> Workload:
    """32 requests of 2,048 tokens of context at decode, one prompt of 4,096 at prefill."""
    heads = problem.shape.heads
    ragged = Ragged((0,), (4096,)) if bucket == TILES else Ragged((2048 - bucket,) * 32, (bucket,) * 32)
    case = make_case(problem, "sharp", ragged, 1, device)
    outputs = tuple(torch.empty(out.shape, dtype=out.dtype, device=device) for out in case.outputs)
    kv = sum(a + b for a, b in zip(ragged.computed, ragged.query, strict=True)) * 2 * heads.kv_width
    pairs = sum(b * (b + 1) // 2 + a * b for a, b in zip(ragged.computed, ragged.query, strict=True))
    operations = 4 * pairs * heads.query_width
    return Workload(((case.inputs, outputs),), kv * problem.act.itemsize, operations)
