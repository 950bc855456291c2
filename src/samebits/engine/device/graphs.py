"""Captured decode steps: one pair of graphs a bucket, the forward and the plain sampling.

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
    """The graphs by bucket. Without any, every step is eager."""

    def __init__(self, graphs: dict[int, DecodeGraph] | None = None) -> None:
        self._graphs = dict(graphs or {})
        self.largest = max(self._graphs, default=0)

    def get(self, rows: int) -> DecodeGraph | None:
        return self._graphs.get(rows)

    def items(self) -> Sequence[tuple[int, DecodeGraph]]:
        return sorted(self._graphs.items())

    def release(self) -> None:
        """Give all of them up. NCCL leaves no group while a graph holds its work."""
        graphs, self._graphs, self.largest = self._graphs, {}, 0
        for graph in graphs.values():
            graph.forward.release()
            for sampling in graph.sampling:
                sampling.release()


def decode_shape(bucket: int) -> StepShape:
    """A decode step: every row is a request of its own, and is sampled."""
    return StepShape(bucket, bucket, bucket)


def capture_graphs(
    buckets: Sequence[int],
    capture: Capture,
    forward: Callable[[int], tuple[Tensor, Tensor]],
    sampling: Callable[[int, Tensor, bool], Tensor] | None,
    progress: Progress,
) -> DecodeGraphs:
    """Capture the buckets, largest first, so that the smaller ones fit into its memory. `forward` and `sampling` do
    the work of a bucket on the fixed buffers. All ranks capture the same buckets at the same time."""
    graphs: dict[int, DecodeGraph] = {}
    progress(STAGE, 0, len(buckets))
    with torch.inference_mode(), ExitStack() as made:
        for number, bucket in enumerate(sorted(buckets, reverse=True), start=1):
            captured = capture(lambda bucket=bucket: forward(bucket))  # type: ignore[misc]
            made.callback(captured.release)
            logits = captured.outputs[1]
            samplings: tuple[Captured[Tensor], ...] = ()
            if sampling is not None:
                samplings = tuple(
                    capture(lambda b=bucket, x=logits, wanted=wanted: sampling(b, x, wanted))  # type: ignore[misc]
                    for wanted in (False, True)
                )
            graphs[bucket] = DecodeGraph(captured, samplings)
            progress(STAGE, number, len(buckets))
        made.pop_all()  # nothing went wrong: they are kept
    return DecodeGraphs(graphs)
