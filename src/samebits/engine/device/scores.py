"""Prompt logprobs of a step, queued on the device and read later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samebits.engine.device.logprobs import QueuedLogprobs, queue_logprobs
from samebits.engine.device.place import Place
from samebits.engine.sampling_stage import SCORED_ROWS_AT_ONCE, ScoredRow
from samebits.numerics.operators import Operators
from samebits.schedule.messages import TokenLogprobs


@dataclass(frozen=True)
class QueuedScores:
    """The prompt logprobs of some rows, to be read once the step is over."""

    parts: Sequence[tuple[Sequence[ScoredRow], QueuedLogprobs]]

    def read(self) -> list[TokenLogprobs | None]:
        """In the rows' order; None where the logits are not finite."""
        results: list[TokenLogprobs | None] = []
        for rows, queued in self.parts:
            finite = np.isfinite(queued.lse.numpy()).tolist()
            values = queued.read([row.target for row in rows])
            results.extend(value if ok else None for value, ok in zip(values, finite, strict=False))
        return results


def queue_scores(
    place: Place,
    operators: Operators,
    logits_of: Callable[[Sequence[int]], Tensor],
    rows: Sequence[ScoredRow],
) -> QueuedScores:
    """Queue the logprobs of prompt tokens. `logits_of` gives the logits of rows of the step, and may give more rows
    than it was asked for."""
    parts = []
    for first in range(0, len(rows), SCORED_ROWS_AT_ONCE):
        some = rows[first : first + SCORED_ROWS_AT_ONCE]
        logits = logits_of([row.row for row in some])
        lse = operators.log_sum_exp(logits)
        targets = place.send(torch.tensor([row.target for row in some], dtype=torch.int64))
        options = [row.options for row in some]
        parts.append((some, queue_logprobs(place, operators, logits, lse, targets, options, logits.shape[1])))
    return QueuedScores(parts)
