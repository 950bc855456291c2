"""The sampling clause in plain torch operators: a batch at a time, floating-point sums, library sorts.

It reads like the clause and agrees with it up to rounding. Its noise words are the contract's, so a seed works
here too; but what it does with one row may depend on the others, as in ordinary engines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samebits.numerics import philox
from samebits.numerics.batch import SampleResult, SamplingBatch, TokenLists

LARGEST_BELOW_ONE = 1.0 - 2.0**-24
NON_FINITE, NOTHING_LEFT = 1, 2


def list_rows(lists: TokenLists) -> Tensor:
    """The row of each entry of a CSR list. int64 [entries]."""
    counts = lists.start.diff()
    return torch.arange(counts.shape[0], device=counts.device).repeat_interleave(counts)


def token_counts(lists: TokenLists, like: Tensor) -> Tensor:
    """How often each id stands in each row's list. float32 [rows, vocabulary]."""
    counts = torch.zeros_like(like)
    ones = torch.ones_like(lists.ids, dtype=counts.dtype)
    return counts.index_put_((list_rows(lists), lists.ids), ones, accumulate=True)


def apply_penalties(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Repetition over prompt and output, frequency and presence over the output. float32 [rows, vocabulary]."""
    used = token_counts(batch.output, logits)
    seen = (used > 0) | (token_counts(batch.prompt, logits) > 0)
    repetition = batch.repetition_penalty[:, None]
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen, repeated, logits)
    logits = logits - batch.frequency_penalty[:, None] * used
    return logits - batch.presence_penalty[:, None] * (used > 0)


def excluded_ids(batch: SamplingBatch, like: Tensor) -> Tensor:
    """bool [rows, vocabulary]: forbidden, or not allowed by the bit set."""
    excluded = torch.zeros_like(like, dtype=torch.bool)
    excluded[list_rows(batch.forbidden), batch.forbidden.ids] = True
    if batch.allowed is not None:
        bits = torch.arange(32, device=like.device, dtype=torch.int32)
        allowed = ((batch.allowed[:, :, None] >> bits) & 1).flatten(1)[:, : like.shape[1]]
        excluded |= allowed == 0
    return excluded


def drop_filtered(scaled: Tensor, batch: SamplingBatch) -> Tensor:
    """Top-k, top-p and min-p: scaled logits [rows, vocabulary] with -inf for what they drop."""
    if not bool(((batch.top_k > 0) | (batch.top_p < 1) | (batch.min_p > 0)).any()):
        return scaled
    values, ids = torch.sort(scaled, dim=-1, descending=True, stable=True)
    rank = torch.arange(scaled.shape[1], device=scaled.device)
    limit = torch.where(batch.top_k > 0, batch.top_k, scaled.shape[1])
    values = values.masked_fill(rank >= limit[:, None], -torch.inf)
    probabilities = torch.softmax(values, dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    beyond = (before >= batch.top_p[:, None]) & (batch.top_p < 1)[:, None] & (rank > 0)
    unlikely = probabilities < batch.min_p[:, None] * probabilities[:, :1]
    values = values.masked_fill(beyond | unlikely, -torch.inf)
    return torch.empty_like(scaled).scatter_(1, ids, values)


def multiply_words(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """(high, low) 32 bits of a product of 32-bit words held in int64."""
    product = word * multiplier
    return (product >> 32) & philox.WORD_MASK, product & philox.WORD_MASK


def noise_words(batch: SamplingBatch, vocabulary: int) -> Tensor:
    """Philox words of all ids as int64 [rows, vocabulary]; see `philox.py`."""
    c0 = torch.arange(-(-vocabulary // 4), device=batch.seed.device)[None, :]
    c1, c2 = batch.position[:, None], batch.sample_index[:, None]
    c3 = torch.full_like(c1, philox.STREAM_SAMPLE)
    k0, k1 = batch.seed[:, None] & philox.WORD_MASK, (batch.seed[:, None] >> 32) & philox.WORD_MASK
    for _ in range(philox.ROUNDS):
        high_0, low_0 = multiply_words(philox.MULTIPLIER_0, c0)
        high_1, low_1 = multiply_words(philox.MULTIPLIER_1, c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + philox.WEYL_0) & philox.WORD_MASK, (k1 + philox.WEYL_1) & philox.WORD_MASK
    words = torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)
    return words.flatten(1)[:, :vocabulary]


def gumbel_noise(batch: SamplingBatch, vocabulary: int) -> Tensor:
    """float32 [rows, vocabulary]."""
    words = noise_words(batch, vocabulary).double()
    v = ((words + 0.5).float() * 2.0**-32).clamp(max=LARGEST_BELOW_ONE)
    return -torch.log(-torch.log1p(-v))


def sample(logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
    """`Operators.sample` without its promise."""
    values = apply_penalties(logits, batch)
    if batch.bias.values is not None:
        where = (list_rows(batch.bias), batch.bias.ids)
        values = values.index_put(where, batch.bias.values, accumulate=True)
    broken = ~(logits.isfinite() & values.isfinite()).all(-1)
    excluded = excluded_ids(batch, logits)
    empty = excluded.all(-1)
    values = values.masked_fill(excluded, -torch.inf).masked_fill((broken | empty)[:, None], 0.0)
    best = values.max(-1, keepdim=True).values
    greedy = batch.temperature == 0
    scaled = (values - best) / torch.where(greedy, 1.0, batch.temperature)[:, None]
    first = torch.zeros_like(scaled).fill_(-torch.inf).scatter_(1, scaled.argmax(-1, keepdim=True), 0.0)
    scaled = torch.where(greedy[:, None], first, drop_filtered(scaled, batch))
    token_ids = (scaled + gumbel_noise(batch, logits.shape[1])).argmax(-1)
    faults = torch.where(broken, NON_FINITE, torch.where(empty, NOTHING_LEFT, 0)).to(torch.uint8)
    processed = None
    if want_processed:
        processed = torch.log_softmax(scaled, -1).masked_fill((faults > 0)[:, None], -torch.inf) + 0.0
    return SampleResult(torch.where(faults > 0, -1, token_ids), faults, processed)
