"""What a step reads on the device: one block of memory at a fixed address, filled by one copy from the host.

The block begins with the tokens that the step before sampled, which only the device writes. Behind them lie the
values of this step, in an order and at places that follow from the step's shape alone, so that a captured graph
of that shape finds them again. Rows are padded to a bucket: a padding row holds token 0 at position 0, stores to
a page that no request owns and belongs to no request, so no attention is computed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samebits.engine.device.place import Moment, Past, Place
from samebits.numerics.batch import RaggedBatch, SamplingBatch

ALIGNMENT = 16
"""Bytes: every array in the block starts at a multiple of this."""
STAGING_BUFFERS = 3
"""Host copies of the block in flight: one being filled, one being copied, one to spare."""


@dataclass(frozen=True)
class InputSizes:
    """The largest step, and where padding goes."""

    rows: int
    """a bucket"""
    requests: int
    """a bucket: a captured step has as many requests as rows"""
    sampled: int
    """a bucket"""
    pages_per_request: int
    page_tokens: int
    padding_page: int

    @property
    def late_tokens(self) -> int:
        """Where the tokens of rows that are sampled late stand among the step's sampled tokens."""
        return self.sampled

    @property
    def kept_tokens(self) -> int:
        """Room for the sampled tokens of a step: its own rows, then the late ones; even, for alignment."""
        return (self.sampled + self.requests + 1) // 2 * 2


@dataclass(frozen=True)
class StepShape:
    """What decides where the values of a step lie, and which of the graphs of as many rows is replayed."""

    rows: int
    requests: int
    sampled: int
    second_way: bool = False
    """whether other kernels serve a captured step's contexts (`Operators.second_way`); it chooses no bit"""


@dataclass(frozen=True)
class StepValues:
    """The arrays of one step, on the host or on the device."""

    token_ids: Tensor
    """int64 [rows]; anything where the token comes from the step before"""
    sources: Tensor
    """int64 [rows]: where each row's token stands, counted from the start of the kept tokens"""
    positions: Tensor
    """int64 [rows]"""
    slots: Tensor
    """int64 [rows]"""
    seed: Tensor
    """int64 [sampled]"""
    sample_index: Tensor
    """int64 [sampled]"""
    sample_position: Tensor
    """int64 [sampled]"""
    last_rows: Tensor
    """int64 [sampled]: the rows that are sampled"""
    temperature: Tensor
    """float32 [sampled]"""
    query_start: Tensor
    """int32 [requests + 1]"""
    page_table: Tensor
    """int32 [requests, pages]"""
    row_faults: Tensor
    """uint8 [rows], zero"""


def _arrays(shape: StepShape, pages: int) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of every array, in their order in the block."""
    for name in ("token_ids", "sources", "positions", "slots"):
        yield name, torch.int64, (shape.rows,)
    for name in ("seed", "sample_index", "sample_position", "last_rows"):
        yield name, torch.int64, (shape.sampled,)
    yield "temperature", torch.float32, (shape.sampled,)
    yield "query_start", torch.int32, (shape.requests + 1,)
    yield "page_table", torch.int32, (shape.requests, pages)
    yield "row_faults", torch.uint8, (shape.rows,)


def block_size(shape: StepShape, pages: int) -> int:
    """Bytes of the arrays of a step."""
    return sum(_padded(kind.itemsize * _count(dims)) for _, kind, dims in _arrays(shape, pages))


def carve(block: Tensor, shape: StepShape, pages: int) -> StepValues:
    """Views of the arrays in a uint8 block."""
    views = {}
    at = 0
    for name, kind, dims in _arrays(shape, pages):
        size = kind.itemsize * _count(dims)
        views[name] = block[at : at + size].view(kind).view(dims)
        at += _padded(size)
    return StepValues(**views)


class StepInputs:
    """The block on the device, and its copies on the host, which are filled while the device reads elsewhere."""

    def __init__(self, place: Place, sizes: InputSizes) -> None:
        self.sizes = sizes
        self._place = place
        self._kept_bytes = 8 * sizes.kept_tokens
        largest = StepShape(sizes.rows, sizes.requests, sizes.sampled)
        size = block_size(largest, sizes.pages_per_request)
        self._block = torch.zeros(self._kept_bytes + size, dtype=torch.uint8, device=place.device)
        self._hosts = [place.host_buffer(size) for _ in range(STAGING_BUFFERS)]
        self._copied: list[Moment] = [Past()] * STAGING_BUFFERS
        self._turn = 0

    @property
    def kept_tokens(self) -> Tensor:
        """int64: the tokens that the step before sampled, at the places that it gave them."""
        return self._block[: self._kept_bytes].view(torch.int64)

    def on_device(self, shape: StepShape) -> StepValues:
        """The arrays of a step of this shape, as its kernels read them."""
        return carve(self._block[self._kept_bytes :], shape, self.sizes.pages_per_request)

    def token_ids(self, values: StepValues) -> Tensor:
        """int64 [rows]: the rows' tokens, those of the step before among them. A copy made by the device."""
        end = self._kept_bytes + 8 * values.token_ids.shape[0]
        return torch.index_select(self._block[:end].view(torch.int64), 0, values.sources)

    def fill(
        self,
        shape: StepShape,
        batch: RaggedBatch,
        unread: Sequence[tuple[int, int]],
        sampling: SamplingBatch | None,
        last_rows: Sequence[int],
        places: Sequence[int],
    ) -> None:
        """Queue the copy of a step's values. `unread` holds (row, place among the kept tokens); `sampling`, with as
        many rows as `last_rows`, may be None; its columns go to `places`."""
        turn = self._turn
        self._turn = (turn + 1) % STAGING_BUFFERS
        self._copied[turn].synchronize()  # the copy out of this buffer, some steps ago
        host = self._hosts[turn]
        size = block_size(shape, self.sizes.pages_per_request)
        self._write(carve(host, shape, self.sizes.pages_per_request), batch, unread)
        if sampling is not None:
            _write_sampling(carve(host, shape, self.sizes.pages_per_request), sampling, last_rows, places)
        self._block[self._kept_bytes : self._kept_bytes + size].copy_(host[:size], non_blocking=True)
        self._copied[turn] = self._place.moment()

    def _write(self, to: StepValues, batch: RaggedBatch, unread: Sequence[tuple[int, int]]) -> None:
        sizes, rows, requests = self.sizes, batch.rows, batch.requests
        for name, padding in (("token_ids", 0), ("positions", 0), ("slots", self.padding_slot)):
            array = getattr(to, name).numpy()
            array[:rows] = getattr(batch, name).numpy()
            array[rows:] = padding
        sources = to.sources.numpy()
        sources[:] = np.arange(sizes.kept_tokens, sizes.kept_tokens + sources.shape[0])
        for row, place in unread:
            sources[row] = place
        starts = to.query_start.numpy()
        starts[: requests + 1] = batch.query_start.numpy()
        starts[requests + 1 :] = rows
        pages = to.page_table.numpy()
        pages.fill(sizes.padding_page)
        table = batch.page_table.numpy()
        pages[:requests, : table.shape[1]] = table
        to.row_faults.numpy().fill(0)

    @property
    def padding_slot(self) -> int:
        """Where padding rows store their keys and values."""
        return self.sizes.padding_page * self.sizes.page_tokens


def ragged(values: StepValues, token_ids: Tensor, page_tokens: int, second_way: bool = False) -> RaggedBatch:
    """The arrays as the forward's operators take them; `second_way` as in `StepShape`."""
    return RaggedBatch(
        token_ids=token_ids,
        positions=values.positions,
        slots=values.slots,
        query_start=values.query_start,
        page_table=values.page_table,
        page_tokens=page_tokens,
        row_faults=values.row_faults,
        second_way=second_way,
    )


def _write_sampling(
    to: StepValues, sampling: SamplingBatch, last_rows: Sequence[int], places: Sequence[int]
) -> None:
    columns = {
        "seed": sampling.seed.numpy(),
        "sample_index": sampling.sample_index.numpy(),
        "sample_position": sampling.position.numpy(),
        "temperature": sampling.temperature.numpy(),
        "last_rows": last_rows,
    }
    for name, column in columns.items():
        array = getattr(to, name).numpy()
        array.fill(0)
        array[places] = column


def _count(dims: Sequence[int]) -> int:
    count = 1
    for length in dims:
        count *= length
    return count


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
