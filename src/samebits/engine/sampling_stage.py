"""The second half of a step: from hidden states to tokens and logprobs.

Each row is sampled from its own logits with its own parameters; which rows share a call never matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from samebits.engine.masks import Mask, RequestMasks
from samebits.engine.runner import Runner
from samebits.numerics.batch import SamplingBatch, TokenLists
from samebits.sampling_params import ResolvedSampling
from samebits.schedule.messages import LogprobOptions, TokenLogprobs
from samebits.schedule.request import Request
from samebits.schedule.scheduler import Chunk

MASK_FAILED = 3
"""Fault of a row whose grammar raised."""
SCORED_ROWS_AT_ONCE = 128
"""Prompt positions whose logits exist at the same time; bounds memory, changes no bit."""


class SampledRow(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What the sampling of one row reads of its request, taken when the step was made: the request itself may
    have moved on by the time that the step runs."""

    rid: str
    sampling: ResolvedSampling
    logprobs: LogprobOptions
    slot: int
    position: int
    """of the token being sampled"""
    prompt_ids: Sequence[int]
    """empty unless a penalty reads it"""
    output_ids: Sequence[int]
    """empty unless a penalty reads it; without the unread token"""
    unread: bool
    """whether the token before the sampled one comes from the step before"""
    forbidden: Sequence[int]
    mask: Future[Mask] | None
    """of its grammar, which may still be computed"""

    @property
    def is_ready(self) -> bool:
        """Whether it can be sampled without waiting."""
        return self.mask is None or self.mask.done()


def sampled_row(chunk: Chunk, masks: RequestMasks | None) -> SampledRow:
    """The row that samples the token after `chunk`."""
    request, spec = chunk.request, chunk.request.spec
    sampling = spec.sampling
    if masks is None and request.samples_plainly:
        # Most rows: nothing but the parameters counts. In the order of the fields.
        return SampledRow(
            spec.rid, sampling, spec.logprobs, request.slot, chunk.end, (), (), chunk.unread, (), None
        )
    output_length = chunk.end - request.prompt_length
    return SampledRow(
        rid=spec.rid,
        sampling=sampling,
        logprobs=spec.logprobs,
        slot=request.slot,
        position=chunk.end,
        prompt_ids=spec.prompt_ids if sampling.repetition_penalty != 1.0 else (),
        output_ids=request.tokens[request.prompt_length :] if sampling.needs_history else (),
        unread=chunk.unread,
        forbidden=sorted(request.stop_ids) if output_length < sampling.min_new_tokens else (),
        mask=None if masks is None else masks.mask_for(output_length),
    )


class SamplerTable:
    """Sampling parameters of the running requests, one row a scheduler slot, so that a step only gathers."""

    def __init__(self, slots: int) -> None:
        self._float = np.zeros((len(_FLOAT_FIELDS), slots), dtype=np.float32)
        self._plain = np.ones(slots, dtype=bool)
        """whether only numbers count, and no list of tokens"""
        self._top_k = np.zeros(slots, dtype=np.int32)
        self._seed = np.zeros(slots, dtype=np.uint64)
        self._sample_index = np.zeros(slots, dtype=np.int64)

    def load(self, request: Request) -> None:
        """Write the parameters of a request that was just admitted to its slot."""
        sampling = request.spec.sampling
        self._float[:, request.slot] = [getattr(sampling, name) for name in _FLOAT_FIELDS]
        self._plain[request.slot] = request.samples_plainly and not sampling.logit_bias
        self._top_k[request.slot] = min(sampling.top_k, 2**31 - 1)
        self._seed[request.slot] = sampling.seed
        self._sample_index[request.slot] = sampling.sample_index

    def batch(self, rows: Sequence[SampledRow]) -> SamplingBatch:
        """What these rows ask of the sampler; unread tokens are still missing from the penalties' history."""
        slots = np.array([row.slot for row in rows], dtype=np.int64)
        positions = np.array([row.position for row in rows], dtype=np.int64)
        columns: Any = map(torch.from_numpy, self._float.take(slots, axis=1))
        no_lists = _token_lists([()] * len(rows)) if self._plain[slots].all() else None
        return SamplingBatch(
            **dict[str, Any](zip(_FLOAT_FIELDS, columns, strict=True)),
            top_k=torch.from_numpy(self._top_k[slots]),
            seed=torch.from_numpy(self._seed[slots].view(np.int64)),
            sample_index=torch.from_numpy(self._sample_index[slots]),
            position=torch.from_numpy(positions),
            prompt=no_lists or _token_lists([row.prompt_ids for row in rows]),
            output=no_lists or _token_lists([row.output_ids for row in rows]),
            bias=_bias_lists(rows) if no_lists is None else replace(no_lists, values=torch.zeros(0)),
            forbidden=no_lists or _token_lists([row.forbidden for row in rows]),
        )


def with_masks(batch: SamplingBatch, rows: Sequence[SampledRow], vocabulary: int) -> SamplingBatch:
    """`batch` with the grammar masks of `rows`, which are ready. Free rows allow everything."""
    if all(row.mask is None for row in rows):
        return batch
    allowed = np.full((len(rows), -(-vocabulary // 32)), -1, dtype=np.int32)
    for i, row in enumerate(rows):
        if row.mask is not None:
            # A grammar that failed allows nothing: that row alone fails, as `sample_rows` reports.
            allowed[i] = 0 if row.mask.exception() else row.mask.result()
    return replace(batch, allowed=torch.from_numpy(allowed))


def with_unread(batch: SamplingBatch, rows: Sequence[SampledRow], unread: Mapping[str, int]) -> SamplingBatch:
    """`batch` with the tokens of the step before added to the history of the rows that read one."""
    if not any(row.unread and row.sampling.needs_history for row in rows):
        return batch
    histories = [
        # A missing token was held back, which makes its row void: anything will do.
        [*row.output_ids, unread.get(row.rid, 0)]
        if row.unread and row.sampling.needs_history
        else row.output_ids
        for row in rows
    ]
    return replace(batch, output=_token_lists(histories))


_FLOAT_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


class Sampled(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One sampled token. `fault` is 0, the sampler's reason (SampleResult), or `MASK_FAILED`."""

    token_id: int
    fault: int
    logprobs: TokenLogprobs | None


def sample_rows(
    runner: Runner, hidden: Tensor, rows: Sequence[SampledRow], batch: SamplingBatch
) -> list[Sampled]:
    """Sample the token after each row of `hidden`; `rows` and `batch` say how."""
    operators = runner.operators
    logits = runner.logits(hidden)
    reporting = [i for i, row in enumerate(rows) if row.logprobs.output]
    processed = [i for i in reporting if rows[i].logprobs.processed]
    result = operators.sample(logits, batch, want_processed=bool(processed))
    token_ids = result.token_ids.tolist()
    faults = result.faults.tolist()
    logprobs: dict[int, TokenLogprobs] = {}

    def report(wanted: list[int], source: Tensor, normaliser: Callable[[Tensor], Tensor]) -> None:
        wanted = [i for i in wanted if not faults[i]]
        if wanted:
            chosen = source if len(wanted) == len(rows) else source[torch.tensor(wanted)]
            ids = [token_ids[i] for i in wanted]
            options = [rows[i].logprobs for i in wanted]
            values = _row_logprobs(runner, chosen, normaliser(chosen), ids, options)
            logprobs.update(zip(wanted, values, strict=True))

    report([i for i in reporting if not rows[i].logprobs.processed], logits, operators.log_sum_exp)
    if result.processed_logprobs is not None:
        # These are logprobs already: their normaliser is zero.
        report(processed, result.processed_logprobs, lambda chosen: torch.zeros(chosen.shape[0]))
    if batch.allowed is not None:
        for i, row in enumerate(rows):
            if row.mask is not None and row.mask.exception() is not None:
                faults[i] = MASK_FAILED
    if not logprobs:
        return [Sampled(token_id, fault, None) for token_id, fault in zip(token_ids, faults, strict=True)]
    return [Sampled(token_ids[i], faults[i], logprobs.get(i)) for i in range(len(rows))]


@dataclass(frozen=True)
class ScoredRow:
    """A row of the forward whose logits score the prompt token after it."""

    row: int
    position: int
    """of the token that is scored"""
    target: int
    options: LogprobOptions


def score_rows(runner: Runner, hidden: Tensor, rows: Sequence[ScoredRow]) -> list[TokenLogprobs | None]:
    """Raw logprobs of prompt tokens; `hidden` is the whole step's. None where logits are not finite."""
    results: list[TokenLogprobs | None] = []
    for first in range(0, len(rows), SCORED_ROWS_AT_ONCE):
        some = rows[first : first + SCORED_ROWS_AT_ONCE]
        logits = runner.logits(hidden[torch.tensor([row.row for row in some])])
        lse = runner.operators.log_sum_exp(logits)
        finite = np.isfinite(lse.cpu().numpy()).tolist()
        options = [row.options for row in some]
        values = _row_logprobs(runner, logits, lse, [row.target for row in some], options)
        results.extend(value if ok else None for value, ok in zip(values, finite, strict=True))
    return results


def _row_logprobs(
    runner: Runner,
    logits: Tensor,
    lse: Tensor,
    token_ids: Sequence[int],
    options: Sequence[LogprobOptions],
) -> list[TokenLogprobs]:
    """The logprobs that each row's options ask for, with one call an operator."""
    operators = runner.operators
    rows: list[int] = []
    ids: list[int] = []
    for row, (token_id, option) in enumerate(zip(token_ids, options, strict=True)):
        rows.extend([row] * (1 + len(option.token_ids)))
        ids.append(token_id)
        ids.extend(option.token_ids)
    values = operators.token_logprobs(logits, lse, torch.tensor(rows), torch.tensor(ids)).tolist()
    top_ids, top_values = _top(runner, logits, lse, options)
    results = []
    at = 0
    for row, (token_id, option) in enumerate(zip(token_ids, options, strict=True)):
        named = len(option.token_ids)
        results.append(
            TokenLogprobs(
                token_id,
                values[at],
                list(zip(top_values[row][: option.top], top_ids[row][: option.top], strict=True)),
                list(zip(values[at + 1 : at + 1 + named], option.token_ids, strict=True)),
            )
        )
        at += 1 + named
    return results


def _top(
    runner: Runner, logits: Tensor, lse: Tensor, options: Sequence[LogprobOptions]
) -> tuple[list[list[int]], list[list[float]]]:
    count = min(max(option.top for option in options), runner.vocabulary)
    if count == 0:
        nothing: list[list] = [[] for _ in options]
        return nothing, nothing
    ids, _ = runner.operators.top_tokens(logits, count)
    rows = torch.arange(len(options)).repeat_interleave(count)
    values = runner.operators.token_logprobs(logits, lse, rows, ids.reshape(-1))
    return ids.tolist(), values.reshape(len(options), count).tolist()


def _token_lists(lists: Sequence[Sequence[int]]) -> TokenLists:
    if not any(lists):
        return TokenLists(torch.zeros(len(lists) + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    start = [0]
    ids: list[int] = []
    for tokens in lists:
        ids.extend(tokens)
        start.append(len(ids))
    return TokenLists(torch.tensor(start), torch.tensor(ids, dtype=torch.int64))


def _bias_lists(rows: Sequence[SampledRow]) -> TokenLists:
    biases = [row.sampling.logit_bias for row in rows]
    lists = _token_lists([list(bias) if bias else () for bias in biases])
    values = [value for bias in biases if bias for value in bias.values()]
    return replace(lists, values=torch.tensor(values, dtype=torch.float32))
