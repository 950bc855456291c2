"""Attention as the engine calls it: a step's rows are shared out once, then every layer follows the same plan.

Which kernel serves which row, and how many programs share the work, changes no bit: tiles and shared ranges give
the bits of one clause.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samebits.numerics.batch import RaggedBatch
from samebits.numerics.gpu import attention
from samebits.numerics.gpu.attention import (
    CLAIMED_UNITS,
    MOST_PROGRAMS,
    RangeBuffers,
    RangeLaunch,
    default_ranges,
    range_buffers,
    ranges_pay,
    specialised_ranges,
)
from samebits.numerics.gpu.attention_operator import (
    TILES,
    AttentionOperator,
    AttentionProblem,
    prove_defaults,
)
from samebits.numerics.gpu.attention_plan import AttentionWork, Units, plan_attention, shared_contexts
from samebits.numerics.gpu.attention_prefill import AnyTile, default_tile, tile_launches, tiles
from samebits.numerics.gpu.attention_shape import AttentionShape, Context
from samebits.numerics.gpu.bindings import (
    ALONE,
    Sharing,
    bind_all,
    compile_behind,
    distinct_sources,
    unproven,
)
from samebits.numerics.gpu.device_key import device_key
from samebits.numerics.gpu.launch import target_name
from samebits.numerics.gpu.operator import Wish
from samebits.numerics.gpu.proofs import ProofStore
from samebits.numerics.operators import HeadLayout, KvLayer

UNIT_TOKENS = 1
"""Query tokens of a shared unit: decode."""
SPLITS_A_REQUEST = 16
"""Room for partials, in splits a unit on average; with more than that the work is shared less evenly."""
LEAST_SPLITS = 1024
RUNS_A_REQUEST = 4
"""Room for partials of claims, in runs a unit on average; with more than that runs are longer."""


@dataclass(frozen=True)
class StepWork:
    """How the attention of one step is shared out."""

    units: AttentionWork
    ranges: RangeLaunch | None
    buffers: RangeBuffers | None


class AttentionScheduler:
    """Plans and runs the attention of one model's heads. `pinned` off lets the split count follow the batch."""

    def __init__(self, device: torch.device, split_tokens: int, pinned: bool = True) -> None:
        self._device = device
        self._split_tokens = split_tokens
        self._pinned = pinned
        self._buffers: dict[AttentionShape, RangeBuffers] = {}
        self._tiles: dict[AttentionProblem, AnyTile] = {}
        """the fastest proven tiles, where they were looked for"""
        self._processors = 2
        if device.type == "cuda":
            self._processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._shape: AttentionShape | None = None
        self._dtype = torch.bfloat16
        self._room = 1

    def prepare(self, heads: HeadLayout, page_tokens: int, dtype: torch.dtype) -> None:
        """Take note of the model's heads, and prove the kernels that will serve them. Called when KV storage is made.
        Raises `NumericsError` where one leaves the clause."""
        self._shape = AttentionShape(heads, page_tokens, self._split_tokens)
        self._dtype = dtype
        if self._pinned and self._device.type == "cuda":
            _prove_once(self._shape, dtype, self._processors, self._device)

    def bind(
        self,
        page_tokens: int,
        folder: Path,
        progress: Callable[[str, int, int], None],
        sharing: Sharing = ALONE,
    ) -> None:
        """Prove every kernel that may serve prefill over pages of that size, or find the proofs in `folder`, and take
        the fastest. Raises `NumericsError` where none is proven. Heads are those that `prepare` was told."""
        if self._shape is None or self._device.type != "cuda":
            return
        wish = self._wish(self._shape, page_tokens)
        store = ProofStore(folder, device_key(self._device))
        bindings = bind_all([wish], store, progress, sharing=sharing)
        problem = wish.problem
        chosen = bindings.candidate(wish.operator.clause, problem, TILES).name
        launches = tile_launches(problem.shape, problem.act, target_name())
        self._tiles[problem] = next(launch for launch in launches if launch.name == chosen)

    def compile_ahead(self, page_tokens: int, folder: Path) -> None:
        """Begin to compile what `bind` will prove, and wait for nothing."""
        if self._shape is not None and self._device.type == "cuda":
            store = ProofStore(folder, device_key(self._device))
            compile_behind(distinct_sources(unproven([self._wish(self._shape, page_tokens)], store)))

    def _wish(self, shape: AttentionShape, page_tokens: int) -> Wish[AttentionProblem]:
        problem = AttentionProblem(replace(shape, page_tokens=page_tokens), self._dtype)
        return Wish(AttentionOperator(self._device), problem, (TILES,))

    def tile(self, shape: AttentionShape, dtype: torch.dtype) -> AnyTile:
        """The launch that serves prefill: what was bound, or until then what `prepare` proved."""
        return self._tiles.get(AttentionProblem(shape, dtype)) or default_tile(shape, dtype)

    def reserve(self, units: int) -> None:
        """Room for so many decoding requests, at an address that stays: captured steps keep using it."""
        self._room = max(units, self._room)
        self._buffers.clear()

    def share_out(self, batch: RaggedBatch, host: RaggedBatch | None) -> StepWork:
        """Plan a step; queues what the device must know, waits for nothing."""
        shape = self._shape
        assert shape is not None, "no KV storage was made yet"
        tile_tokens = self.tile(shape, self._dtype).tokens(shape.group)
        if host is None:
            counts = batch.query_start[1:] - batch.query_start[:-1]
            places = torch.arange(batch.requests, dtype=torch.int32, device=self._device)
            work = AttentionWork(None, Units(batch.query_start[:-1], counts, places))
            ranged = batch.second_way
        else:
            wanted = None if host.wanted is None else host.wanted.numpy()
            work = plan_attention(
                host.query_start.numpy(),
                host.positions.numpy(),
                tile_tokens,
                UNIT_TOKENS,
                self._device,
                wanted,
            )
            contexts = shared_contexts(host.query_start.numpy(), host.positions.numpy(), UNIT_TOKENS)
            ranged = self.second_way(0 if work.shared is None else work.shared.units, contexts)
        if work.shared is None:
            return StepWork(work, None, None)
        ranges = self._ranges(shape, work.shared.units, ranged)
        buffers = self._buffers_for(shape, work.shared.units, ranges.programs)
        attention.plan_ranges(shape, batch.positions, batch.page_table, work.shared, buffers, ranges)
        return StepWork(work, ranges, buffers)

    def second_way(self, units: int, contexts: np.ndarray | None = None) -> bool:
        """As `Operators.second_way`: ranges, where claims are the first."""
        if self._shape is None or units <= CLAIMED_UNITS or not self._claims(self._shape):
            return False
        return contexts is None or ranges_pay(self._shape, contexts, units, self._processors)

    def _claims(self, shape: AttentionShape) -> bool:
        """Whether splits may be claimed."""
        return self._pinned and specialised_ranges(shape, self._dtype, UNIT_TOKENS)

    def _ranges(self, shape: AttentionShape, units: int, ranged: bool) -> RangeLaunch:
        return default_ranges(shape, self._dtype, UNIT_TOKENS, units, self._processors, self._pinned, ranged)

    def _buffers_for(self, shape: AttentionShape, units: int, programs: int) -> RangeBuffers:
        found = self._buffers.get(shape)
        if found is None or found.split_start.shape[0] <= units or found.plans.shape[0] < programs:
            room = max(units, self._room)
            splits = max(SPLITS_A_REQUEST * room, LEAST_SPLITS)
            # For any launch: captured steps of other buckets keep these addresses.
            programs = max(programs, MOST_PROGRAMS * self._processors)
            capacity = splits * shape.heads.kv_heads + programs
            runs = max(RUNS_A_REQUEST * room, LEAST_SPLITS) * shape.heads.kv_heads
            claims = runs if self._claims(shape) else 0
            found = range_buffers(shape, room, UNIT_TOKENS, programs, capacity, self._device, claims)
            self._buffers[shape] = found
        return found

    def run(
        self,
        queries: Tensor,
        heads: HeadLayout,
        scale: float,
        batch: RaggedBatch,
        kv: KvLayer,
        only_wanted: bool = False,
    ) -> Tensor:
        """queries act [rows, query_heads, head_dim] -> act [rows, query width]. Rows of nobody are left as they are,
        and with `only_wanted` also those whose tiles hold no wanted row."""
        shape = AttentionShape(heads, kv.page_tokens, self._split_tokens)
        work = batch.work
        if not isinstance(work, StepWork):
            self._shape, self._dtype = shape, queries.dtype
            work = self.share_out(batch, on_host(batch))
        output = torch.empty_like(queries)
        context = Context(kv.keys, kv.values, batch.positions, batch.page_table)
        tiled = work.units.wanted_tiles if only_wanted else work.units.tiles
        if tiled is not None:
            tile = self.tile(shape, queries.dtype)
            tiles(shape, queries, context, tiled, scale, output, tile)
        if work.units.shared is not None:
            assert work.ranges is not None and work.buffers is not None
            attention.shared(
                shape, queries, context, work.units.shared, scale, output, work.buffers, work.ranges, self._pinned,
            )  # fmt: skip
        return output.flatten(1)


@functools.cache
def _prove_once(shape: AttentionShape, dtype: torch.dtype, processors: int, device: torch.device) -> None:
    """Once a process: the same binaries serve every storage of the same heads."""
    prove_defaults(shape, dtype, processors, device)


def on_host(batch: RaggedBatch) -> RaggedBatch:
    """A copy of a batch for planning; waits for the device."""
    return RaggedBatch(
        token_ids=batch.token_ids,
        positions=batch.positions.cpu(),
        slots=batch.slots,
        query_start=batch.query_start.cpu(),
        page_table=batch.page_table,
        page_tokens=batch.page_tokens,
        row_faults=batch.row_faults,
        wanted=None if batch.wanted is None else batch.wanted.cpu(),
    )
