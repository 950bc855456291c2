"""Captured decode steps: one pair of graphs a bucket, the forward and the plain sampling, and where operators ask for
that, another for contexts that other kernels serve.

A graph reads nothing but fixed buffers, so its cost follows the lengths that lie in them, not the longest possible
ones. It computes what the eager path computes, with the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.engine.device.inputs import StepShape
from samebits.engine.device.place import Capture, Captured
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import Operators

STAGE = "capturing decode graphs"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DecodeGraph:
    """A captured decode step of one bucket."""

    forward: Captured[tuple[Tensor, Tensor]]
    """hidden states act [rows, hidden] and their logits float32 [rows, vocabulary]"""
    sampling: tuple[Captured[Tensor], ...]
    """what `sample_plain` returns, without logprobs and with them; none on a rank that does not sample"""


class DecodeGraphs:
    """The graphs by their steps' shape. Without any, every step is eager."""

    def __init__(self, graphs: dict[StepShape, DecodeGraph] | None = None) -> None:
        self._graphs = dict(graphs or {})
        self.largest = max((shape.rows for shape in self._graphs), default=0)

    def get(self, shape: StepShape) -> DecodeGraph | None:
        return self._graphs.get(shape)

    def items(self) -> Sequence[tuple[StepShape, DecodeGraph]]:
        return list(self._graphs.items())

    def release(self) -> None:
        """Give all of them up. NCCL leaves no group while a graph holds its work."""
        graphs, self._graphs, self.largest = self._graphs, {}, 0
        for graph in graphs.values():
            graph.forward.release()
            for sampling in graph.sampling:
                sampling.release()


def decode_shape(bucket: int, second_way: bool = False) -> StepShape:
    """A decode step: every row is a request of its own, and is sampled. `second_way` as in `StepShape`."""
    return StepShape(bucket, bucket, bucket, second_way)


def decode_shapes(buckets: Sequence[int], operators: Operators) -> list[StepShape]:
    """The decode steps to capture: each bucket's, and those that take a second way where there is one."""
    shapes = [decode_shape(bucket) for bucket in buckets]
    return shapes + [decode_shape(bucket, True) for bucket in buckets if operators.second_way(bucket)]


def shape_of_decode(batch: RaggedBatch, bucket: int, operators: Operators) -> StepShape:
    """What a decode step of `batch`, on the host, is captured as."""
    return decode_shape(bucket, operators.second_way(bucket, batch.positions.numpy() + 1))


def capture_graphs(
    shapes: Sequence[StepShape],
    capture: Capture,
    forward: Callable[[StepShape], tuple[Tensor, Tensor]],
    sampling: Callable[[StepShape, Tensor, bool], Tensor] | None,
    progress: Progress,
) -> DecodeGraphs:
    """Capture decode steps of these shapes, largest first, so that the smaller ones fit into its memory. `forward` and
    `sampling` do their work on the fixed buffers. All ranks capture the same shapes at the same time."""
    graphs: dict[StepShape, DecodeGraph] = {}
    progress(STAGE, 0, len(shapes))
    with torch.inference_mode(), ExitStack() as made:
        ordered = sorted(shapes, key=lambda shape: shape.rows, reverse=True)
        for number, shape in enumerate(ordered, start=1):
            captured = capture(lambda shape=shape: forward(shape))  # type: ignore[misc]
            made.callback(captured.release)
            logits = captured.outputs[1]
            samplings: tuple[Captured[Tensor], ...] = ()
            if sampling is not None:
                samplings = tuple(
                    capture(lambda s=shape, x=logits, wanted=wanted: sampling(s, x, wanted))  # type: ignore[misc]
                    for wanted in (False, True)
                )
            graphs[shape] = DecodeGraph(captured, samplings)
            progress(STAGE, number, len(shapes))
        made.pop_all()  # nothing went wrong: they are kept
    return DecodeGraphs(graphs)
