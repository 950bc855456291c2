"""What a rank other than 0 does with a device: the forwards and logits that rank 0 tells it of, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from samebits.engine.device.forward import LogitsOrder, StepForward, StepOrder, StepRanks
from samebits.engine.device.graphs import DecodeGraphs, capture_graphs, decode_shapes
from samebits.engine.device.inputs import InputSizes
from samebits.engine.device.place import Capture, Place
from samebits.engine.runner import Runner
from samebits.numerics.collectives.group import Group


@dataclass(frozen=True)
class BuildSteps:
    """Make the buffers of a step and capture these buckets, as rank 0 does."""

    sizes: InputSizes
    buckets: Sequence[int]


class RankSteps:
    """Follows rank 0 through its steps. Nothing in here waits for the device."""

    def __init__(self, model: Runner, hidden_width: int, group: Group, sizes: InputSizes) -> None:
        self._operators = model.operators
        self._hidden_width = hidden_width
        self._forward = StepForward(model, Place(self._operators.device), sizes, StepRanks(group))
        self._graphs = DecodeGraphs()

    def capture(self, buckets: Sequence[int], capture: Capture) -> None:
        """Capture decode steps of these buckets, together with rank 0."""
        self._graphs = capture_graphs(
            decode_shapes(buckets, self._operators),
            capture,
            self._forward.captured_work,
            None,
            lambda stage, done, total: None,
        )

    def follow(self, order: StepOrder | LogitsOrder) -> None:
        """Queue this rank's part of what rank 0 queues."""
        with torch.inference_mode():
            if isinstance(order, LogitsOrder):
                self._forward.logits(
                    torch.empty(
                        (order.rows, self._hidden_width),
                        dtype=self._operators.activation_dtype,
                        device=self._operators.device,
                    )
                )
                return
            graph = self._graphs.get(order.shape) if order.captured else None
            self._forward.run(order, None if graph is None else graph.forward)
