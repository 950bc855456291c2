"""The forward of a step on one rank: inputs, hidden states, logits. Every rank of a model has one of these.

Rank 0 decides what a step is and tells the others; tokens that the step before sampled are on its device alone, so
the rows' tokens travel from there as the forward begins. What the ranks do is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from samebits.engine.device.inputs import InputSizes, StepInputs, StepShape, StepValues, ragged
from samebits.engine.device.place import Captured, Place
from samebits.engine.runner import Runner
from samebits.numerics.batch import RaggedBatch, SamplingBatch
from samebits.numerics.collectives.group import SOLO, Group


@dataclass(frozen=True)
class StepOrder:
    """A forward to compute, with all that its inputs are made of."""

    shape: StepShape
    captured: bool
    """whether a graph of this shape is to be replayed"""
    batch: RaggedBatch
    """on the host"""
    unread: Sequence[tuple[int, int]] = ()
    """rank 0 alone: (row, place of its token among the kept ones)"""
    sampling: SamplingBatch | None = None
    """rank 0 alone"""
    last_rows: Sequence[int] = ()
    places: Sequence[int] = ()
    wanted: Sequence[int] | None = None
    """rows whose hidden states are asked for, as many as a bucket holds; None: all"""


@dataclass(frozen=True)
class LogitsOrder:
    """Logits to compute of hidden states that rank 0 has."""

    rows: int


def nobody(order: StepOrder | LogitsOrder) -> None:
    """Tells no rank, for there is none."""


@dataclass(frozen=True)
class StepRanks:
    """The other ranks, as a rank sees them while it computes a step."""

    group: Group = SOLO
    tell: Callable[[StepOrder | LogitsOrder], None] = nobody
    """of rank 0: sends an order to the others"""

    def from_first(self, values: Tensor) -> Tensor:
        """Rank 0's values, on every rank."""
        return values if self.group.size == 1 else self.group.all_gather(values)[0]

    def join_faults(self, faults: Tensor) -> None:
        """Fault flags uint8 [rows] of all ranks into each: a value that is not finite may be any rank's."""
        if self.group.size > 1:
            torch.amax(self.group.all_gather(faults), dim=0, out=faults)


ALONE = StepRanks()


@dataclass(frozen=True)
class StepForward:
    """The model with the fixed buffers that its forward reads."""

    model: Runner
    place: Place
    sizes: InputSizes
    ranks: StepRanks = ALONE
    inputs: StepInputs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", StepInputs(self.place, self.sizes))

    def run(
        self, order: StepOrder, graph: Captured[tuple[Tensor, Tensor]] | None
    ) -> tuple[StepValues, Tensor]:
        """Queue the inputs of a step and its forward. Returns where the inputs lie, and hidden states act [rows,
        hidden] of the wanted rows."""
        self.inputs.fill(
            order.shape, order.batch, order.unread, order.sampling, order.last_rows, order.places
        )
        values = self.inputs.on_device(order.shape)
        if graph is not None:
            self.ranks.group.settle()
            graph.replay()
            return values, graph.outputs[0]
        host = order.batch
        if order.wanted is not None:
            host = replace(host, wanted=torch.tensor(order.wanted, dtype=torch.int64))
        return values, self._hidden(values, host)

    def captured_work(self, shape: StepShape) -> tuple[Tensor, Tensor]:
        """The forward of a decode step of this shape and the logits of all its rows, over what lies in the buffers."""
        self.ranks.group.settle()
        hidden = self._hidden(self.inputs.on_device(shape), None, shape.second_way)
        logits = self.model.logits(hidden)
        self.ranks.group.settle()
        return hidden, logits

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [rows, vocabulary] of rank 0's hidden states, outside of a graph. The other ranks give a tensor of
        that shape, whose values do not matter."""
        return self.model.logits(self.ranks.from_first(hidden))

    def _hidden(self, values: StepValues, host: RaggedBatch | None, second_way: bool = False) -> Tensor:
        token_ids = self.ranks.from_first(self.inputs.token_ids(values))
        wanted = None if host is None or host.wanted is None else self.place.send(host.wanted)
        batch = replace(ragged(values, token_ids, self.sizes.page_tokens, second_way), wanted=wanted)
        hidden = self.model.forward(self.model.operators.share_out(batch, host))
        self.ranks.join_faults(values.row_faults)
        return hidden
