"""Logprobs of a step, queued on the device and read later. The same values as `sampling_stage` computes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.engine.device.place import Place
from samebits.numerics.operators import Operators
from samebits.schedule.messages import LogprobOptions, TokenLogprobs


@dataclass(frozen=True)
class QueuedLogprobs:
    """Host copies of what some rows asked for; whole once the step's last moment has passed."""

    options: Sequence[LogprobOptions]
    lse: Tensor
    """float32 [rows]"""
    chosen: Tensor
    """float32 [rows]"""
    named: Tensor | None
    """float32: of the ids that the options name, row by row"""
    top_ids: Tensor | None
    """int64 [rows, count]"""
    top_values: Tensor | None
    """float32 [rows, count]"""

    def read(self, token_ids: Sequence[int]) -> list[TokenLogprobs]:
        """For the chosen `token_ids`, one a row."""
        chosen = self.chosen.tolist()
        named = [] if self.named is None else self.named.tolist()
        ids = [] if self.top_ids is None else self.top_ids.tolist()
        values = [] if self.top_values is None else self.top_values.tolist()
        results = []
        at = 0
        for row, (token_id, option) in enumerate(zip(token_ids, self.options, strict=True)):
            top = option.top if ids else 0
            selected = list(zip(named[at : at + len(option.token_ids)], option.token_ids, strict=True))
            at += len(option.token_ids)
            pairs = list(zip(values[row][:top], ids[row][:top], strict=True)) if top else []
            results.append(TokenLogprobs(token_id, chosen[row], pairs, selected))
        return results


def queue_logprobs(
    place: Place,
    operators: Operators,
    logits: Tensor,
    lse: Tensor,
    chosen: Tensor,
    options: Sequence[LogprobOptions],
    vocabulary: int,
) -> QueuedLogprobs:
    """Queue what the options ask for. logits float32 [at least rows, vocabulary]; `lse` float32 beside it; `chosen`
    int64 [rows] on the device, each a valid id."""
    count = len(options)
    rows = place.send(torch.arange(count))
    values = operators.token_logprobs(logits, lse, rows, chosen[:count])
    names = [(row, token_id) for row, option in enumerate(options) for token_id in option.token_ids]
    named = None
    if names:
        where = place.send(torch.tensor(names, dtype=torch.int64).t().contiguous())
        named = place.fetch(operators.token_logprobs(logits, lse, where[0], where[1]))
    most = min(max(option.top for option in options), vocabulary)
    top_ids = top_values = None
    if most:
        ids, _ = operators.top_tokens(logits[:count], most)
        top_rows = place.send(torch.arange(count).repeat_interleave(most))
        top_values = place.fetch(
            operators.token_logprobs(logits, lse, top_rows, ids.reshape(-1)).view(count, most)
        )
        top_ids = place.fetch(ids)
    return QueuedLogprobs(options, place.fetch(lse), place.fetch(values), named, top_ids, top_values)
