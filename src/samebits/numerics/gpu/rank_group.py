"""The ranks of a model on the GPUs of one host, as the operators see them.

Three ways to exchange tensors: through each other's memory; where that is missing, by gathering all parts through
NCCL and folding them here; and with NCCL's own sums, whose order is nobody's promise.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.collectives.group import Group
from samebits.numerics.gpu import all_reduce
from samebits.numerics.gpu.configuration import start
from samebits.numerics.gpu.norm import add_rms_norm
from samebits.numerics.gpu.owners import Owners
from samebits.numerics.gpu.ranks import BLOCK, BYTE_CARRIER, LAUNCH, METHODS, PIECE, RankCollectives

CARRIED = PIECE * BYTE_CARRIER.itemsize
"""Bytes: what is gathered is padded to a multiple of this."""
FIRST_BYTES = 1 << 20
RENDEZVOUS_SECONDS = 600.0
ALL_METHODS = (*METHODS, "gather", "nccl")

log = logging.getLogger(__name__)


class RankGroup(Protocol):
    """A `Group` that adds, too. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """where this rank computes"""

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks in rank order: [size, *shape]."""

    def settle(self) -> None:
        """Called before captured work begins, and where it ends."""

    def reserve(self, size: int) -> None:
        """Make room for parts and sums of up to `size` bytes. Not inside a capture."""

    def part(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Where to write this rank's part for the next call of one of the three below, which takes it."""

    def pushes(self, rows: int, size: int) -> bool:
        """Whether a part of so many rows, `size` bytes, is better written to the ranks that add it than to `part`."""

    def owners(self, rows: int) -> Owners:
        """Where a part of so many rows is written then, by the next call of one of the two below, with `pushed`."""

    def push(self, values: Tensor) -> Tensor:
        """Write values to the ranks that add them, as a product would: a part for the next call, with `pushed`."""

    @property
    def ways(self) -> Sequence[str]:
        """Names of the ways to add, one of which serves a message."""

    def all_reduce(self, part: Tensor, act: torch.dtype, pushed: bool = False, way: str = "") -> Tensor:
        """The parts of all ranks, added; it may be overwritten by the next call but one. `way` asks for one of
        `ways`."""

    def all_reduce_add_norm(
        self,
        part: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        pushed: bool = False,
        whole: bool = True,
        shared: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`add_rms_norm` of `all_reduce` in the residual's type, bit for bit. Without `whole`, only the next call of
        this, for as many rows, reads the second result, which may lack what that call does not read; and the first
        result may be overwritten by the next call but one. `shared` asks for each rank to norm the rows that it adds
        (None: where that is faster)."""

    def gather_columns(self, part: Tensor, columns: int) -> Tensor:
        """The parts [rows, held] side by side, cut to [rows, columns]."""

    def gather_rows(self, part: Tensor, ids: Tensor, held: int) -> Tensor:
        """Row r of the part of the rank that holds ids[r]; every rank holds `held` ids."""

    def abandon(self) -> None:
        """A rank is gone, or all are about to leave: nothing must wait for another. May be called by another thread,
        and may not return before the device's graphs are given up."""

    def meet(self) -> None:
        """Wait, on the host, until every rank is here. Raises `RanksLostError` when one is gone."""

    def describe(self) -> str:
        """Which collective serves which size."""


class PeerGroup:
    """Ranks that read each other's memory. Buffers grow as they are needed, on all ranks at once. `host` is the same
    group through the host, which notices where a rank is gone."""

    def __init__(self, device: torch.device, tree: bool, method: str, host: Group) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self._host = host
        self._make: Callable[[int], RankCollectives] = lambda size: RankCollectives(
            size, device, tree=tree, method=method
        )
        self._collectives = self._make(FIRST_BYTES)

    def reserve(self, size: int) -> None:
        if size > self._collectives.most_bytes:
            torch.cuda.synchronize(self.device)
            self.meet()
            self._collectives = self._make(size)

    def all_gather(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        padded = -(-size // CARRIED) * CARRIED
        part = self.part((padded // BYTE_CARRIER.itemsize,), BYTE_CARRIER)
        part.view(torch.uint8)[:size].view(tensor.dtype).copy_(tensor.reshape(-1))
        out = torch.empty((self.size, part.numel()), dtype=BYTE_CARRIER, device=tensor.device)
        gathered = self._collectives.all_gather(part, out).view(torch.uint8)
        return gathered[:, :size].view(tensor.dtype).view(self.size, *tensor.shape)

    def settle(self) -> None:
        self._collectives.settle()

    def part(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = dtype.itemsize
        for length in shape:
            size *= length
        self.reserve(size)
        return self._collectives.input(shape, dtype)

    def pushes(self, rows: int, size: int) -> bool:
        return self._collectives.pushes(rows, size)

    def owners(self, rows: int) -> Owners:
        return Owners(self._collectives.push_table(), self.rank, rows // self.size)

    def push(self, values: Tensor) -> Tensor:
        self.reserve(values.numel() * values.element_size())
        return self._collectives.push(values)

    @property
    def ways(self) -> Sequence[str]:
        return METHODS[1:]

    def all_reduce(self, part: Tensor, act: torch.dtype, pushed: bool = False, way: str = "") -> Tensor:
        return self._collectives.all_reduce(part, act, way, pushed)

    def all_reduce_add_norm(
        self,
        part: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        pushed: bool = False,
        whole: bool = True,
        shared: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        if shared is None:
            shared = self._collectives.shares_norms(*residual.shape)
        if shared:
            return self._collectives.add_norm_shares(part, residual, weight, eps, whole, pushed)
        if pushed or not self._collectives.fuses(part):
            return add_rms_norm(self.all_reduce(part, residual.dtype, pushed), residual, weight, eps)
        out = torch.empty_like(residual), torch.empty_like(residual)
        return self._collectives.add_rms_norm(part, residual, weight, eps, out)

    def gather_columns(self, part: Tensor, columns: int) -> Tensor:
        if columns % PIECE == 0:
            return self._collectives.gather_columns(part, columns)
        out = torch.empty((self.size, *part.shape), dtype=part.dtype, device=part.device)
        return side_by_side(self._collectives.all_gather(part, out), columns)

    def gather_rows(self, part: Tensor, ids: Tensor, held: int) -> Tensor:
        return self._collectives.gather_rows(part, ids, held)

    def meet(self) -> None:
        self._host.all_gather(torch.zeros(1))

    def abandon(self) -> None:
        self._collectives.abandon()

    def describe(self) -> str:
        return self._collectives.describe()


class GatheringGroup:
    """Ranks without a view of each other's memory. Parts travel through NCCL as they are and are added here by the
    kernel that adds peers' memory; with `own_sums` off NCCL adds by itself, in an order of its own."""

    def __init__(self, device: torch.device, tree: bool, own_sums: bool, host: Group) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self._tree = tree
        self._own_sums = own_sums
        self._host = host
        self._none = torch.zeros(1, dtype=torch.int64, device=device)
        self._order = torch.arange(self.size, dtype=torch.int64, device=device)

    def reserve(self, size: int) -> None:
        """Nothing is shared."""

    def settle(self) -> None:
        """Nothing takes turns."""

    def meet(self) -> None:
        self._host.all_gather(torch.zeros(1))

    def abandon(self) -> None:
        # Else a process that ends waits in NCCL for the ranks that have left. What devices wait for is let go at once,
        # but this returns only when no captured graph holds work of the group.
        if dist.group.WORLD is not None:
            dist.group.WORLD.abort()

    def all_gather(self, tensor: Tensor) -> Tensor:
        out = torch.empty((self.size, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
        dist.all_gather_into_tensor(
            out.view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8)
        )
        return out

    def part(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def pushes(self, rows: int, size: int) -> bool:
        return False

    def owners(self, rows: int) -> Owners:
        raise NumericsError("ranks that do not reach each other's memory cannot be written to")

    def push(self, values: Tensor) -> Tensor:
        raise NumericsError("ranks that do not reach each other's memory cannot be written to")

    @property
    def ways(self) -> Sequence[str]:
        return ("",)

    def all_reduce(self, part: Tensor, act: torch.dtype, pushed: bool = False, way: str = "") -> Tensor:
        if not self._own_sums:
            dist.all_reduce(part)
            return part.to(act)
        elements = part.numel()
        if elements % PIECE:
            raise NumericsError(f"a message must be a multiple of {PIECE} elements, not {elements}")
        gathered = self.all_gather(part)
        table = self._order * (elements * part.element_size()) + gathered.data_ptr()
        y = torch.empty(part.shape, dtype=act, device=part.device)
        start(
            all_reduce.one_shot, (-(-elements // BLOCK),),
            table, self._none, self._none, part, y, elements // PIECE, self.rank,
            launch=LAUNCH, FIRST=self.rank, WORLD=self.size, TREE=self._tree, BLOCK=BLOCK, MEET=0,
        )  # fmt: skip
        return y

    def all_reduce_add_norm(
        self,
        part: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        pushed: bool = False,
        whole: bool = True,
        shared: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        return add_rms_norm(self.all_reduce(part, residual.dtype), residual, weight, eps)

    def gather_columns(self, part: Tensor, columns: int) -> Tensor:
        return side_by_side(self.all_gather(part), columns)

    def gather_rows(self, part: Tensor, ids: Tensor, held: int) -> Tensor:
        gathered = self.all_gather(part)
        places = torch.clamp(ids // held, 0, self.size - 1) * part.shape[0] + torch.arange(
            part.shape[0], device=part.device
        )
        return torch.index_select(gathered.view(-1, part.shape[1]), 0, places)

    def describe(self) -> str:
        if not self._own_sums:
            return f"{self.size} ranks: NCCL's sums, which promise nothing"
        order = "balanced tree" if self._tree else "ascending ranks"
        return (
            f"{self.size} ranks, {order}, float32: all parts gathered through NCCL and added, for every size"
        )


def side_by_side(gathered: Tensor, columns: int) -> Tensor:
    """[size, rows, held] -> [rows, columns]."""
    size, rows, held = gathered.shape
    return gathered.transpose(0, 1).reshape(rows, size * held)[:, :columns].contiguous()


def check_method(method: str, profile: str) -> None:
    """Raises `NumericsError` for a collective that would break the promise of the profile."""
    if method not in ALL_METHODS:
        raise NumericsError(f"--all-reduce must be one of {', '.join(ALL_METHODS)}, not {method!r}")
    if method == "nccl" and profile != "unpinned":
        raise NumericsError(
            f"--all-reduce nccl: NCCL adds in an order that follows the message, which --numerics {profile} forbids; "
            "it is there to be measured with --numerics unpinned"
        )


def carried_by_nccl(method: str, profile: str) -> bool:
    """Whether NCCL carries what the ranks exchange."""
    return method in ("gather", "nccl") or (method == "auto" and profile == "unpinned")


def check_ranks(size: int, profile: str, method: str, ranks_per_gpu: int = 1) -> None:
    """Raises `NumericsError` for a collective that the profile forbids, and where this process cannot hold a rank."""
    check_method(method, profile)
    there = torch.cuda.device_count()
    if ranks_per_gpu < 1 or size % ranks_per_gpu:
        raise NumericsError(f"--ranks-per-gpu must divide --tensor-parallel {size}, got {ranks_per_gpu}")
    if ranks_per_gpu > 1 and carried_by_nccl(method, profile):
        raise NumericsError(
            f"--ranks-per-gpu {ranks_per_gpu}: NCCL, which carries what ranks exchange under --numerics {profile} and "
            f"--all-reduce {method}, takes one rank a GPU"
        )
    if there < size // ranks_per_gpu:
        raise NumericsError(
            f"--tensor-parallel {size} takes a GPU for "
            f"{'each rank' if ranks_per_gpu == 1 else f'every {ranks_per_gpu} ranks'}, and torch finds {there} here"
        )
    if dist.is_initialized():
        raise NumericsError(
            "this process has held ranks of a model before, or torch.distributed is in use; a model over several GPUs "
            "needs a process of its own"
        )


def open_rank_group(
    meeting_file: Path, host: Group, profile: str, method: str, ranks_per_gpu: int = 1
) -> RankGroup:
    """Join the ranks of `host`, this one on the GPU of its number; all do so together. `meeting_file` is a path that
    all know and no earlier group used. With `ranks_per_gpu` as many of them share a GPU, which gives each its turn: a
    meeting takes milliseconds. Raises `NumericsError` where there are too few GPUs, or none can reach another."""
    rank, size = host.rank, host.size
    check_ranks(size, profile, method, ranks_per_gpu)
    device = torch.device("cuda", rank // ranks_per_gpu)
    torch.cuda.set_device(device)
    # A program that uses multicast can put the GPUs of a shared host out of service; nothing here needs it.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    if ranks_per_gpu > 1:
        os.environ.setdefault("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES", "1")
    by_nccl = carried_by_nccl(method, profile)
    # Ranks that reach each other's memory need no more than to find each other, which is gloo's.
    dist.init_process_group(
        "nccl" if by_nccl else "gloo",
        store=dist.FileStore(str(meeting_file), size),
        rank=rank,
        world_size=size,
        device_id=device if by_nccl else None,
        timeout=datetime.timedelta(seconds=RENDEZVOUS_SECONDS),
    )
    tree = profile == "tp-invariant"
    group: RankGroup = (
        GatheringGroup(device, tree, own_sums=method == "gather", host=host)
        if by_nccl
        else PeerGroup(device, tree, method, host)
    )
    if rank == 0:
        log.info("[AR] %s", group.describe())
    return group
