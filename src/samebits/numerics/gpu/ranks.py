"""One rank's end of the collectives on a GPU: buffers that all ranks reach, and the choice of a kernel by size.

The choice is free, because every kernel gives the same bits. Buffers come in pairs that take turns: a rank that has
met the others in one collective knows that all have left the one before, so a buffer's next writer disturbs nobody.
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
from samebits.numerics.gpu import all_reduce
from samebits.numerics.gpu.configuration import Launch, start

BLOCK = 2048
PIECE = all_reduce.PIECE.value
LAUNCH = Launch(warps=8, stages=1)
NORM_LAUNCH = Launch(warps=8, stages=1)
MOST_PROGRAMS = 128
"""Programs that meet must all run at once: no more than the smallest GPU served has multiprocessors."""
ONE_SHOT_BYTES = {2: 1 << 62, 4: 512 << 10, 8: 256 << 10}
"""Messages up to this size are summed in one shot, by number of ranks; with two ranks both ways move as much."""
METHODS = ("auto", "one-shot", "two-shot")
KINDS = (torch.bfloat16, torch.float16, torch.float32)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PeerBuffer:
    """A buffer of this rank that all ranks reach."""

    local: Tensor
    table: Tensor
    """int64 [ranks] on the device: where this rank reaches everyone's"""


def peer_buffer(elements: int, dtype: torch.dtype, device: torch.device, group_name: str) -> PeerBuffer:
    """Allocate one; all ranks of the group must do so together. Raises `NumericsError` without peer access."""
    try:
        local = symmetric_memory.empty(elements, dtype=dtype, device=device)
        handle = symmetric_memory.rendezvous(local, group_name)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise NumericsError(
            f"the GPUs of this host cannot read each other's memory, which tensor parallelism needs: {error}"
        ) from error
    table = torch.tensor(list(handle.buffer_ptrs), dtype=torch.int64, device=device)
    return PeerBuffer(local.zero_(), table)


class RankCollectives:
    """Collectives of one rank over the process group `group_name`, for messages of up to `most_elements`.

    `part` is the type of what is added (float32 under `tp-invariant`), `act` that of the sums. Every rank makes the
    same calls in the same order; captured in a CUDA graph they may be replayed. A sum stands in a buffer of the
    collectives until the next call but one.
    """

    def __init__(
        self,
        most_elements: int,
        part: torch.dtype,
        act: torch.dtype,
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
        self._act = act
        most_elements = _share(most_elements, self.size) * self.size
        self._inputs = [peer_buffer(most_elements, part, device, name) for _ in range(2)]
        self._results = [peer_buffer(most_elements, act, device, name) for _ in range(2)]
        self._pads = peer_buffer(MOST_PROGRAMS * self.size, torch.int64, device, name)
        self._epochs = torch.zeros(MOST_PROGRAMS, dtype=torch.int64, device=device)
        self._turn = 0
        torch.cuda.synchronize(device)
        dist.barrier()
        self._tell()

    def input(self, shape: Sequence[int]) -> Tensor:
        """Where the next collective reads this rank's part; write it there first."""
        return self._inputs[self._turn].local[: prod(shape)].view(tuple(shape))

    def all_reduce(self, shape: Sequence[int], method: str = "") -> Tensor:
        """The sum over ranks of the inputs, act [shape], on every rank."""
        elements = _checked(prod(shape))
        chosen = method or self._method
        if chosen == "auto":
            chosen = self.method_of(elements)
        source, result = self._take_turn()
        y = result.local[:elements]
        common = {"WORLD": self.size, "TREE": self._tree, "BLOCK": BLOCK, "MEET": True}
        if chosen == "one-shot":
            start(
                all_reduce.one_shot, (_programs(elements),),
                source.table, self._pads.table, self._epochs, source.local, y, _pieces(elements), self.rank,
                launch=LAUNCH, **common,
            )  # fmt: skip
        else:
            share = _share(elements, self.size)
            start(
                all_reduce.two_shot, (_programs(share),),
                source.table, result.table, self._pads.table, self._epochs, source.local, y, _pieces(elements),
                _pieces(share), self.rank, launch=LAUNCH, **common,
            )  # fmt: skip
        return y.view(tuple(shape))

    def method_of(self, elements: int) -> str:
        """Which kernel serves a message of so many elements."""
        limit = ONE_SHOT_BYTES.get(self.size, ONE_SHOT_BYTES[8])
        return "one-shot" if elements * self._inputs[0].local.element_size() <= limit else "two-shot"

    def reduce_scatter(self, elements: int) -> Tensor:
        """This rank's share of the sum, act [share]; the last share may end early."""
        share = _share(_checked(elements), self.size)
        source, result = self._take_turn()
        y = result.local[:share]
        start(
            all_reduce.reduce_scatter, (_programs(share),),
            source.table, self._pads.table, self._epochs, source.local, y, _pieces(elements), _pieces(share), self.rank,
            launch=LAUNCH, WORLD=self.size, TREE=self._tree, BLOCK=BLOCK, MEET=True,
        )  # fmt: skip
        return y

    def all_gather(self, elements: int, out: Tensor) -> Tensor:
        """Every rank's input, copied into `out` [ranks, elements] of the parts' type."""
        source, _ = self._take_turn()
        _checked(elements)
        start(
            all_reduce.all_gather, (_programs(elements),),
            source.table, self._pads.table, self._epochs, out, _pieces(elements), self.rank,
            launch=LAUNCH, WORLD=self.size, BLOCK=BLOCK, MEET=True,
        )  # fmt: skip
        return out

    def add_rms_norm(
        self, residual: Tensor, weight: Tensor, eps: float, out: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`add_rms_norm` of the sum over ranks, in one kernel: the bits of `all_reduce` and then the norm."""
        rows, width = residual.shape
        source, _ = self._take_turn()
        start(
            all_reduce.one_shot_add_norm, (min(rows, MOST_PROGRAMS),),
            source.table, self._pads.table, self._epochs, source.local, residual, weight, *out, rows, self.rank, eps,
            launch=NORM_LAUNCH, WIDTH=width, LANES=CONTRACT.device_reduction_lanes, WORLD=self.size,
            TREE=self._tree, MEET=True,
        )  # fmt: skip
        return out

    def _take_turn(self) -> tuple[PeerBuffer, PeerBuffer]:
        turn, self._turn = self._turn, 1 - self._turn
        return self._inputs[turn], self._results[turn]

    def _tell(self) -> None:
        limit = ONE_SHOT_BYTES.get(self.size, ONE_SHOT_BYTES[8])
        order = "balanced tree" if self._tree else "ascending ranks"
        if self._method != "auto":
            log.info(
                "[AR] %d ranks, %s, float32: %s for every size, as asked for", self.size, order, self._method
            )
        elif limit >= 1 << 40:
            log.info("[AR] %d ranks, %s, float32: one-shot for every size", self.size, order)
        else:
            log.info(
                "[AR] %d ranks, %s, float32: one-shot up to %d KiB, two-shot above",
                self.size, order, limit >> 10,
            )  # fmt: skip


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
