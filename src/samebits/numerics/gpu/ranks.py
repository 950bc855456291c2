"""One rank's end of the collectives on a GPU: buffers that all ranks reach, and the choice of a kernel by size.

The choice is free, because every kernel gives the same bits. Buffers come in pairs that take turns: a rank that has
met the others in one collective knows that all have left the one before, so a buffer's next writer disturbs nobody.
What is captured in a graph begins and ends at the same turn (`settle`), so graphs may follow each other in any order.
NVLink multicast is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _symmetric_memory as symmetric_memory

from samebits.errors import NumericsError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu import all_reduce, gathers, row_shares, symmetric
from samebits.numerics.gpu.configuration import Launch, start
from samebits.numerics.gpu.norm import rms_norm

BLOCK = 2048
PIECE = all_reduce.PIECE.value
LAUNCH = Launch(warps=8, stages=1)
NORM_LAUNCH = Launch(warps=8, stages=1)
MOST_PROGRAMS = 128
"""Programs that meet must all run at once: no more than the smallest GPU served has multiprocessors."""
ONE_SHOT_BYTES = {2: 1 << 62, 4: 256 << 10, 8: 256 << 10}
"""Messages up to this size are summed in one shot, by number of ranks; with two ranks both ways move as much."""
FUSED_BYTES = {2: 1 << 62, 4: 256 << 10, 8: 256 << 10}
"""Up to this size one shot with the norm behind it in one kernel is faster than the fastest sum and then the norm."""
PUSH_BYTES = {2: 1 << 62, 4: 12 << 20, 8: 12 << 20}
"""From this size on it is faster to write a rank's share to it than to have it read, by number of ranks."""
PUSHED_BYTES, MOST_UNPUSHED_ROWS = 1 << 20, 64
"""From this size on float32 parts travel while the product that gives them is computed; products of few rows have
kernels that begin early instead."""
METHODS = ("auto", "one-shot", "two-shot", "push")
MEETING = symmetric.FENCED.value if torch.version.cuda is None else symmetric.ACQUIRED.value
KINDS = (torch.bfloat16, torch.float16, torch.float32)
BYTE_CARRIER = torch.int32
"""Tensors of any type are gathered as if they were of this one."""
ABANDONED = 1 << 62
"""More often than any program meets."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PeerBuffer:
    """A buffer of this rank that all ranks reach."""

    local: Tensor
    """uint8 [size]"""
    table: Tensor
    """int64 [ranks] on the device: where this rank reaches everyone's"""

    def view(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The beginning of the buffer as a tensor."""
        return self.local[: prod(shape) * dtype.itemsize].view(dtype).view(tuple(shape))


def peer_buffer(size: int, device: torch.device, group_name: str) -> PeerBuffer:
    """Allocate `size` bytes; all ranks of the group must do so together. Raises `NumericsError` without peer access."""
    try:
        local = symmetric_memory.empty(size, dtype=torch.uint8, device=device)
        handle = symmetric_memory.rendezvous(local, group_name)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise NumericsError(
            "the GPUs of this host cannot read each other's memory, which --all-reduce auto, one-shot, two-shot and "
            f"push need; --all-reduce gather does without, and is slower: {error}"
        ) from error
    table = torch.tensor(list(handle.buffer_ptrs), dtype=torch.int64, device=device)
    return PeerBuffer(local.zero_(), table)


class RankCollectives:
    """Collectives of one rank over the process group `group_name`, for inputs and results of up to `most_bytes`.

    Every rank makes the same calls in the same order; captured in a CUDA graph they may be replayed. A result stands
    in a buffer of the collectives until the next call but one. `tree` joins ranks as `tp-invariant` does.
    """

    def __init__(
        self,
        most_bytes: int,
        device: torch.device,
        group_name: str = "",
        tree: bool = False,
        method: str = "auto",
    ) -> None:
        if method not in METHODS:
            raise NumericsError(f"the all-reduce method must be one of {', '.join(METHODS)}, not {method!r}")
        group = dist.group.WORLD
        name = group_name or (group.group_name if group is not None else "")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if tree and self.size not in (2, 4, 8):
            raise NumericsError(f"a tree of leaves needs 2, 4 or 8 ranks, not {self.size}")
        self._tree = tree
        self._method = method
        self.most_bytes = _rounded(most_bytes, 4 * PIECE * self.size)
        self._inputs = [peer_buffer(self.most_bytes, device, name) for _ in range(2)]
        self._results = [peer_buffer(self.most_bytes, device, name) for _ in range(2)]
        # Room for what others write here before it is added: a message may still be at work in the input.
        self._shares = [peer_buffer(self.most_bytes, device, name) for _ in range(2)]
        self._pads = peer_buffer(8 * MOST_PROGRAMS * self.size, device, name)
        self._epochs = torch.zeros(MOST_PROGRAMS, dtype=torch.int64, device=device)
        self._turn = 0
        # Made now: when they are wanted, the device may be waiting for a rank that is gone.
        self._abandoned = torch.full((MOST_PROGRAMS * self.size,), ABANDONED, pin_memory=True)
        self._aside = torch.cuda.Stream(device)
        torch.cuda.synchronize(device)
        dist.barrier()

    def input(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Where the next collective reads this rank's part; write it there first."""
        if prod(shape) * dtype.itemsize > self.most_bytes:
            raise NumericsError(
                f"a message of {list(shape)} {dtype} is larger than the buffers of {self.most_bytes} bytes"
            )
        return self._inputs[self._turn].view(shape, dtype)

    def pushes(self, rows: int, size: int) -> bool:
        """Whether a message of so many rows, `size` bytes, is better written to the ranks that add it by the kernel
        that computes it."""
        large = rows > MOST_UNPUSHED_ROWS and size >= PUSHED_BYTES
        return self._method == "auto" and large and rows % self.size == 0

    def push_table(self) -> Tensor:
        """int64 [ranks]: where each rank has room for shares [ranks, share], for a kernel that writes its results to
        the ranks that add them; `all_reduce` with `pushed` is next."""
        return self._shares[self._turn].table

    def push(self, x: Tensor) -> Tensor:
        """Write the rows of x to the ranks that add them, as a product may do by itself, and give the input that
        `all_reduce` is told of."""
        rows, width = x.shape
        part = self.input(x.shape, x.dtype)
        start(
            gathers.push_rows, (_programs(x.numel()),),
            x, self.push_table(), rows, rows // self.size, self.rank,
            launch=LAUNCH, WIDTH=width, BLOCK=BLOCK,
        )  # fmt: skip
        return part

    def all_reduce(self, part: Tensor, act: torch.dtype, method: str = "", pushed: bool = False) -> Tensor:
        """The sum over ranks of the inputs, act, on every rank. `part` is what `input` gave. `pushed`: its shares have
        been written to the ranks that add them."""
        elements, shares = _checked(part.numel()), self._shares[self._turn]
        source, result = self._take_turn(part)
        y = result.view((elements,), act)
        common = {"WORLD": self.size, "TREE": self._tree, "BLOCK": BLOCK, "MEET": MEETING, "FIRST": self.rank}
        chosen = self.method_of(part, method)
        if chosen == "one-shot" and not pushed:
            start(
                all_reduce.one_shot, (_programs(elements),),
                source.table, self._pads.table, self._epochs, part, y, _pieces(elements), self.rank,
                launch=LAUNCH, **common,
            )  # fmt: skip
            return y.view(part.shape)
        way = all_reduce.PUSHED if pushed else all_reduce.PUSH if chosen == "push" else all_reduce.READ
        table = source.table if way is all_reduce.READ else shares.table
        share = _share(elements, self.size)
        start(
            all_reduce.two_shot, (_programs(share),),
            table, result.table, self._pads.table, self._epochs, part, y, _pieces(elements), _pieces(share),
            self.rank, launch=LAUNCH, WAY=way.value, **common,
        )  # fmt: skip
        return y.view(part.shape)

    def method_of(self, part: Tensor, method: str = "") -> str:
        """Which kernel serves a message."""
        chosen = method or self._method
        if chosen != "auto":
            return chosen
        size = part.numel() * part.element_size()
        if size >= limit_of(PUSH_BYTES, self.size):
            return "push"
        return "one-shot" if size <= limit_of(ONE_SHOT_BYTES, self.size) else "two-shot"

    def fuses(self, part: Tensor) -> bool:
        """Whether a sum that a norm follows is one kernel with it."""
        if self._method != "auto":
            return self._method == "one-shot"
        return part.numel() * part.element_size() <= limit_of(FUSED_BYTES, self.size)

    def reduce_scatter(self, part: Tensor, act: torch.dtype) -> Tensor:
        """This rank's share of the sum, act [share]; the last share may end early."""
        elements = _checked(part.numel())
        share = _share(elements, self.size)
        source, result = self._take_turn(part)
        y = result.view((share,), act)
        start(
            all_reduce.reduce_scatter, (_programs(share),),
            source.table, self._pads.table, self._epochs, part, y, _pieces(elements), _pieces(share), self.rank,
            launch=LAUNCH, FIRST=self.rank, WORLD=self.size, TREE=self._tree, BLOCK=BLOCK, MEET=MEETING,
        )  # fmt: skip
        return y

    def all_gather(self, part: Tensor, out: Tensor) -> Tensor:
        """Every rank's input, copied into `out` [ranks, *shape]."""
        source, _ = self._take_turn(part)
        elements = _checked(part.numel())
        start(
            all_reduce.all_gather, (_programs(elements),),
            source.table, self._pads.table, self._epochs, out, _pieces(elements), self.rank,
            launch=LAUNCH, WORLD=self.size, BLOCK=BLOCK, MEET=MEETING,
        )  # fmt: skip
        return out

    def gather_columns(self, part: Tensor, columns: int) -> Tensor:
        """The inputs [rows, held] of all ranks side by side: [rows, columns], both widths multiples of 8."""
        rows, held = part.shape
        source, _ = self._take_turn(part)
        y = torch.empty((rows, columns), dtype=part.dtype, device=part.device)
        start(
            gathers.gather_columns, (_programs(rows * held * self.size),),
            source.table, self._pads.table, self._epochs, y, rows, _pieces(_checked(held)), _pieces(_checked(columns)),
            self.rank, launch=LAUNCH, WORLD=self.size, BLOCK=BLOCK, MEET=MEETING,
        )  # fmt: skip
        return y

    def gather_rows(self, part: Tensor, ids: Tensor, held: int) -> Tensor:
        """Row r of the input [rows, width] of the rank that holds ids[r]; every rank holds `held` ids."""
        rows, width = part.shape
        source, _ = self._take_turn(part)
        y = torch.empty_like(part)
        start(
            gathers.gather_rows, (_programs(rows * width),),
            source.table, self._pads.table, self._epochs, ids, y, rows, held, self.rank,
            launch=LAUNCH, WIDTH=width, WORLD=self.size, BLOCK=BLOCK, MEET=MEETING,
        )  # fmt: skip
        return y

    def add_rms_norm(
        self, part: Tensor, residual: Tensor, weight: Tensor, eps: float, out: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`add_rms_norm` of the sum over ranks, in one kernel: the bits of `all_reduce` and then the norm."""
        rows, width = residual.shape
        source, _ = self._take_turn(part)
        start(
            all_reduce.one_shot_add_norm, (min(rows, MOST_PROGRAMS),),
            source.table, self._pads.table, self._epochs, part, residual, weight, *out, rows, self.rank, eps,
            launch=NORM_LAUNCH, WIDTH=width, LANES=CONTRACT.device_reduction_lanes, FIRST=self.rank, WORLD=self.size,
            TREE=self._tree, MEET=MEETING,
        )  # fmt: skip
        return out

    def shares_norms(self, rows: int, columns: int) -> bool:
        """Whether `add_norm_shares` serves sums of this shape: where products write parts to those who add them."""
        return self._tree and self.pushes(rows, rows * columns * torch.float32.itemsize)

    def add_norm_shares(
        self,
        part: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        whole: bool,
        pushed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`add_rms_norm` of the sum over ranks, each rank norming the rows that it adds, for all. Read of the residual
        are this rank's rows, rank * rows / size and on. Without `whole` the second result has only these, too, and the
        first one stands in a buffer; with it, the second one does."""
        rows, width = residual.shape
        _checked(part.numel())
        shares = self._shares[self._turn]
        source, result = self._take_turn(part)
        y = result.view((rows, width), residual.dtype)
        total = y if whole else torch.empty_like(residual)
        way = all_reduce.PUSHED if pushed else all_reduce.READ
        share_rows = rows // self.size
        start(
            row_shares.add_norm_shares, (min(share_rows, MOST_PROGRAMS),),
            shares.table if pushed else source.table, result.table, self._pads.table, self._epochs,
            part, residual, weight, y, total, share_rows, self.rank, eps,
            launch=NORM_LAUNCH, WIDTH=width, LANES=CONTRACT.device_reduction_lanes, FIRST=self.rank,
            WORLD=self.size, TREE=self._tree, WAY=way.value, NORMED=not whole, MEET=MEETING,
        )  # fmt: skip
        return (rms_norm(y, weight, eps), y) if whole else (y, total)

    def settle(self) -> None:
        """Have the next collective take the first buffer: ranks meet once more if it is not its turn."""
        if self._turn:
            self._take_turn(None)
            start(
                gathers.meet_alone, (1,), self._pads.table, self._epochs, self.rank,
                launch=LAUNCH, WORLD=self.size, MEET=MEETING,
            )  # fmt: skip

    def abandon(self) -> None:
        """Let every meeting pass, those that the device is waiting in and all later ones: a rank is gone. What they
        give is worthless. May be called by another thread."""
        with torch.cuda.stream(self._aside):
            self._pads.local.view(torch.int64).copy_(self._abandoned, non_blocking=True)

    def _take_turn(self, part: Tensor | None) -> tuple[PeerBuffer, PeerBuffer]:
        turn, self._turn = self._turn, 1 - self._turn
        if part is not None and part.data_ptr() != self._inputs[turn].local.data_ptr():
            raise NumericsError("a collective reads what was written to its input, and nothing else")
        return self._inputs[turn], self._results[turn]

    def describe(self) -> str:
        """Which collective serves which size, for the log."""
        return served(self.size, self._tree, self._method)


def served(size: int, tree: bool, method: str) -> str:
    """Which collective of `size` ranks serves which size of message."""
    one, push = limit_of(ONE_SHOT_BYTES, size), limit_of(PUSH_BYTES, size)
    order = "balanced tree" if tree else "ascending ranks"
    if method != "auto":
        by_size = f"{method} for every size, as asked for"
    elif one >= 1 << 40:
        by_size = "one-shot for every size"
    else:
        by_size = f"one-shot up to {one >> 10} KiB, two-shot above, push from {push >> 10} KiB on"
    if tree and method == "auto":
        by_size += f"; from {PUSHED_BYTES >> 10} KiB on, products write to the ranks that add"
    return f"{size} ranks, {order}, float32: {by_size}"


def limit_of(limits: dict[int, int], size: int) -> int:
    """What holds for so many ranks: a size that is not listed goes with the largest."""
    return limits.get(size, limits[8])


def _checked(elements: int) -> int:
    if elements % PIECE or elements >= 1 << 31:
        raise NumericsError(f"a message must be a multiple of 8 elements and fewer than 2^31, not {elements}")
    return elements


def _pieces(elements: int) -> int:
    return elements // PIECE


def _programs(elements: int) -> int:
    return max(1, min(-(-elements // BLOCK), MOST_PROGRAMS))


def _share(elements: int, size: int) -> int:
    """Elements of one rank's share: whole 16-byte pieces of any type."""
    return -(-elements // (PIECE * size)) * PIECE


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit
