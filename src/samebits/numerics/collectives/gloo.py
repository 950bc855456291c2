"""Ranks on CPU, over gloo. Gloo carries bytes; it never adds values, for its order of sums is its own."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from samebits.errors import RanksLostError

LOOPBACK = "127.0.0.1"
# torch's type stubs lack most of what this class offers.
_Gloo: Any = dist.ProcessGroupGloo


class GlooGroup:
    """One rank of a group of processes on this host. They find each other through `meeting_file`, a path that all
    know and that no earlier group used; making one waits until every rank is there, `patience_seconds` at most."""

    def __init__(self, meeting_file: Path, rank: int, size: int, patience_seconds: float = 600.0) -> None:
        self.rank = rank
        self.size = size
        patience = datetime.timedelta(seconds=patience_seconds)
        options = _Gloo._Options()
        # By address: a host's own name need not resolve, and ranks never leave the host.
        options._devices = [_Gloo.create_device(hostname=LOOPBACK)]
        options._timeout = patience
        store = dist.FileStore(str(meeting_file), size)
        store.set_timeout(patience)
        try:
            self._gloo = _Gloo(store, rank, size, options)
        except RuntimeError as error:
            raise RanksLostError(f"rank {rank} of {size} did not find the others: {error}") from error

    def all_gather(self, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        gathered = torch.empty((self.size, *tensor.shape), dtype=tensor.dtype)
        if tensor.numel() == 0:
            return gathered
        # As bytes: gloo knows few dtypes, and must not look into the values.
        parts = [part.view(-1).view(torch.uint8) for part in gathered]
        try:
            self._gloo.allgather([parts], [tensor.view(-1).view(torch.uint8)]).wait()
        except RuntimeError as error:
            raise RanksLostError(f"rank {self.rank} lost another rank: {error}") from error
        return gathered

    def settle(self) -> None:
        """Gloo keeps nothing between calls."""

    def abandon(self) -> None:
        """Gloo notices a closed connection by itself."""
