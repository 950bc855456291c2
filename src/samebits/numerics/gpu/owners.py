"""Ranks as owners of rows: each adds its share of the rows for all."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Owners:
    """Who adds which rows: rank r those from r * rows on."""

    table: Tensor
    """int64 [ranks] on the device: where each rank's memory [ranks, rows, columns] begins"""
    rank: int
    """which place in it is this rank's"""
    rows: int
