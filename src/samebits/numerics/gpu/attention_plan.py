"""Which rows share an attention program: units of consecutive query rows of one request.

Long runs of rows (a prefill chunk) become tiles that walk all their splits; short ones (a decode token, a verify of
drafts) become units whose splits all programs share. Nothing here may change a bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Units:
    """Groups of consecutive rows of one request, on the device; a unit with count 0 is skipped."""

    first: Tensor
    """int32 [units]: first batch row"""
    count: Tensor
    """int32 [units]"""
    request: Tensor
    """int32 [units]: row of the page table"""

    @property
    def units(self) -> int:
        return self.first.shape[0]


def no_units(units: int, device: torch.device) -> Units:
    """Room for some units, all skipped; fixed addresses for a captured graph, filled in place."""
    return Units(*(torch.zeros(units, dtype=torch.int32, device=device) for _ in range(3)))


def decode_units(rows: int, room: int, device: torch.device) -> Units:
    """Units of a decode step in which row r is request r: `rows` of them, and `room` - `rows` that are skipped."""
    place = torch.arange(room, dtype=torch.int32, device=device)
    return Units(place, (place < rows).to(torch.int32), place)


def split_units(
    query_start: np.ndarray, positions: np.ndarray, requests: np.ndarray, rows_of_unit: int
) -> np.ndarray:
    """Units int32 [3, units] (first, count, request) of the requests `requests`, longest contexts first.

    query_start int32 [all requests + 1], positions int64 [rows].
    """
    lengths = (query_start[1:] - query_start[:-1])[requests]
    pieces = -(-lengths // rows_of_unit)
    owner = np.repeat(requests, pieces)
    ends = np.cumsum(pieces)
    number = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - pieces, pieces)
    first = query_start[owner] + number * rows_of_unit
    count = np.minimum(rows_of_unit, query_start[owner + 1] - first)
    order = np.argsort(-positions[first + count - 1], kind="stable")
    return np.ascontiguousarray(np.stack([first, count, owner])[:, order], dtype=np.int32)


def aligned(units: np.ndarray) -> np.ndarray:
    """int32 [3, units] with units that are skipped behind them, so that every row starts at 16 bytes."""
    room = np.zeros((3, -(-units.shape[1] // 4) * 4), dtype=np.int32)
    room[:, : units.shape[1]] = units
    return room


@dataclass(frozen=True)
class AttentionWork:
    """All rows of a step: tiles for the long runs of rows, shared units for the short ones; None where empty."""

    tiles: Units | None
    shared: Units | None
    wanted_tiles: Units | None = None
    """those of `tiles` in which some row is wanted, where that was asked for"""


def plan_attention(
    query_start: np.ndarray,
    positions: np.ndarray,
    rows_of_tile: int,
    rows_of_unit: int,
    device: torch.device,
    wanted: np.ndarray | None = None,
) -> AttentionWork:
    """Divide a ragged batch. Requests of at most `rows_of_unit` rows are shared; host arrays, no wait for the
    device. query_start int32 [requests + 1], positions int64 [rows], wanted int64: rows, in any order."""
    lengths = query_start[1:] - query_start[:-1]
    long = np.flatnonzero(lengths > rows_of_unit)
    short = np.flatnonzero((lengths > 0) & (lengths <= rows_of_unit))
    tiles = split_units(query_start, positions, long, rows_of_tile)
    shared = split_units(query_start, positions, short, rows_of_unit)
    some = tiles[:, :0] if wanted is None else tiles[:, holds_any(tiles, wanted, len(positions))]
    return AttentionWork(on_device(tiles, device), on_device(shared, device), on_device(some, device))


def shared_contexts(query_start: np.ndarray, positions: np.ndarray, rows_of_unit: int) -> np.ndarray:
    """Tokens int64 of the contexts of requests that are shared. Arguments as in `plan_attention`."""
    lengths = query_start[1:] - query_start[:-1]
    ends = query_start[1:][(lengths > 0) & (lengths <= rows_of_unit)] - 1
    return positions[ends] + 1


def holds_any(units: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """bool [units]: whether a unit of int32 [3, units] holds one of `rows`, of `count` rows in all."""
    before = np.zeros(count + 1, dtype=np.int64)
    before[rows + 1] = 1
    before = np.cumsum(before)
    return before[units[0] + units[1]] > before[units[0]]


def on_device(units: np.ndarray, device: torch.device) -> Units | None:
    """Units int32 [3, units] where kernels read them; None where there are none. Waits for nothing."""
    if units.shape[1] == 0:
        return None
    table = torch.from_numpy(aligned(units))
    if device.type == "cuda":
        table = table.pin_memory()
    return Units(*table.to(device, non_blocking=True).unbind(0))
