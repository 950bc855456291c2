"""The second half of a step: from hidden states to tokens and logprobs.

Each row is sampled from its own logits with its own parameters; which rows share a call never matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samebits.engine.runner import Runner
from samebits.numerics.batch import SamplingBatch, TokenLists
from samebits.schedule.messages import LogprobOptions, TokenLogprobs
from samebits.schedule.request import Request

SCORED_ROWS_AT_ONCE = 128
"""Prompt positions whose logits exist at the same time; bounds memory, changes no bit."""


class SamplerTable:
    """Sampling parameters of the running requests, one row a scheduler slot, so that a step only gathers."""

    def __init__(self, slots: int) -> None:
        self._float = {name: np.zeros(slots, dtype=np.float32) for name in _FLOAT_FIELDS}
        self._top_k = np.zeros(slots, dtype=np.int32)
        self._seed = np.zeros(slots, dtype=np.uint64)
        self._sample_index = np.zeros(slots, dtype=np.int64)

    def load(self, request: Request) -> None:
        """Write the parameters of a request that was just admitted to its slot."""
        sampling = request.spec.sampling
        for name, column in self._float.items():
            column[request.slot] = getattr(sampling, name)
        self._top_k[request.slot] = min(sampling.top_k, 2**31 - 1)
        self._seed[request.slot] = sampling.seed
        self._sample_index[request.slot] = sampling.sample_index

    def batch(self, requests: Sequence[Request]) -> SamplingBatch:
        """What the rows of these requests ask; row i samples the next token of request i."""
        slots = np.fromiter((request.slot for request in requests), dtype=np.int64, count=len(requests))
        positions = np.fromiter((len(request.tokens) for request in requests), dtype=np.int64)
        columns = {name: torch.from_numpy(column[slots]) for name, column in self._float.items()}
        return SamplingBatch(
            **columns,
            top_k=torch.from_numpy(self._top_k[slots]),
            seed=torch.from_numpy(self._seed[slots].view(np.int64)),
            sample_index=torch.from_numpy(self._sample_index[slots]),
            position=torch.from_numpy(positions),
            prompt=_token_lists(requests, _penalised_prompt),
            output=_token_lists(requests, _penalised_output),
            bias=_bias_lists(requests),
            forbidden=_token_lists(requests, _forbidden),
        )


_FLOAT_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


@dataclass(frozen=True)
class Sampled:
    """One sampled token. `fault` is 0, or the sampler's reason (SampleResult)."""

    token_id: int
    fault: int
    logprobs: TokenLogprobs | None


def sample_rows(
    runner: Runner, hidden: Tensor, requests: Sequence[Request], table: SamplerTable
) -> list[Sampled]:
    """Sample the next token of each request from its row of `hidden`."""
    operators = runner.operators
    logits = runner.logits(hidden)
    processed_rows = [i for i, request in enumerate(requests) if _wants_processed(request)]
    result = operators.sample(logits, table.batch(requests), want_processed=bool(processed_rows))
    token_ids = result.token_ids.tolist()
    faults = result.faults.tolist()
    wanted = [i for i, request in enumerate(requests) if request.spec.logprobs.output and not faults[i]]
    logprobs: dict[int, TokenLogprobs] = {}
    raw = [i for i in wanted if not _wants_processed(requests[i])]
    for rows, source in ((raw, logits), ([i for i in wanted if i not in raw], result.processed_logprobs)):
        if rows:
            assert source is not None
            chosen = source if len(rows) == len(requests) else source[torch.tensor(rows)]
            # Processed rows are logprobs already: their normaliser is zero.
            normaliser = operators.log_sum_exp(chosen) if source is logits else torch.zeros(len(rows))
            options = [requests[i].spec.logprobs for i in rows]
            values = _row_logprobs(runner, chosen, normaliser, [token_ids[i] for i in rows], options)
            logprobs.update(zip(rows, values, strict=True))
    return [Sampled(token_ids[i], faults[i], logprobs.get(i)) for i in range(len(requests))]


@dataclass(frozen=True)
class ScoredRow:
    """A row of the forward whose logits score the prompt token after it."""

    row: int
    request: Request
    target: int


def score_rows(runner: Runner, hidden: Tensor, rows: Sequence[ScoredRow]) -> list[TokenLogprobs | None]:
    """Raw logprobs of prompt tokens; `hidden` is the whole step's. None where logits are not finite."""
    results: list[TokenLogprobs | None] = []
    for first in range(0, len(rows), SCORED_ROWS_AT_ONCE):
        some = rows[first : first + SCORED_ROWS_AT_ONCE]
        logits = runner.logits(hidden[torch.tensor([row.row for row in some])])
        lse = runner.operators.log_sum_exp(logits)
        finite = torch.isfinite(lse).tolist()
        options = [row.request.spec.logprobs for row in some]
        values = _row_logprobs(runner, logits, lse, [row.target for row in some], options)
        results.extend(value if ok else None for value, ok in zip(values, finite, strict=True))
    return results


def _wants_processed(request: Request) -> bool:
    return request.spec.logprobs.output and request.spec.logprobs.processed


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


def _penalised_prompt(request: Request) -> Sequence[int]:
    return request.spec.prompt_ids if request.spec.sampling.repetition_penalty != 1.0 else ()


def _penalised_output(request: Request) -> Sequence[int]:
    return request.tokens[request.prompt_length :] if request.spec.sampling.needs_history else ()


def _forbidden(request: Request) -> Sequence[int]:
    if request.output_length >= request.spec.sampling.min_new_tokens:
        return ()
    return sorted(request.stop_ids)


def _token_lists(requests: Sequence[Request], tokens_of: Callable[[Request], Sequence[int]]) -> TokenLists:
    start = [0]
    ids: list[int] = []
    for request in requests:
        ids.extend(tokens_of(request))
        start.append(len(ids))
    return TokenLists(torch.tensor(start), torch.tensor(ids, dtype=torch.int64))


def _bias_lists(requests: Sequence[Request]) -> TokenLists:
    start = [0]
    ids: list[int] = []
    values: list[float] = []
    for request in requests:
        ids.extend(request.spec.sampling.logit_bias.keys())
        values.extend(request.spec.sampling.logit_bias.values())
        start.append(len(ids))
    return TokenLists(
        torch.tensor(start),
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(values, dtype=torch.float32),
    )
