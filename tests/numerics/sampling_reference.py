"""A slow, independent reading of the sampling clause, row by row in plain Python, and its planted mistakes.

Penalties and temperature use numpy float32 scalars, one IEEE operation each, so scaled logits are exact. The
exponential and the noise are arguments: float64 from `math` for correctness, the kernels' float32 for bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from samebits.numerics.batch import SampleResult, SamplingBatch, TokenLists
from samebits.numerics.philox import token_word

F32 = np.float32
FIELDS = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "presence_penalty": torch.float32,
    "frequency_penalty": torch.float32,
    "repetition_penalty": torch.float32,
    "position": torch.int64,
    "sample_index": torch.int64,
}


@dataclass(frozen=True)
class Row:
    """What one row asks for, as plain values."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 42
    position: int = 7
    sample_index: int = 0
    prompt: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    bias: dict[int, float] = field(default_factory=dict)
    forbidden: tuple[int, ...] = ()
    allowed: frozenset[int] | None = None


def token_lists(rows: Sequence[Sequence[int]], values: Sequence[Sequence[float]] | None = None) -> TokenLists:
    starts = np.cumsum([0] + [len(row) for row in rows])
    flat = [token_id for row in rows for token_id in row]
    return TokenLists(
        torch.tensor(starts, dtype=torch.int64),
        torch.tensor(flat, dtype=torch.int64),
        None if values is None else torch.tensor([v for row in values for v in row], dtype=torch.float32),
    )


def signed(seed: int) -> int:
    """The int64 with the bit pattern of a 64-bit seed."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


def allowed_words(rows: Sequence[Row], vocabulary: int) -> torch.Tensor | None:
    if all(row.allowed is None for row in rows):
        return None
    words = np.full((len(rows), -(-vocabulary // 32)), 0xFFFFFFFF, np.uint32)
    for index, row in enumerate(rows):
        if row.allowed is not None:
            words[index] = 0
            for token_id in row.allowed:
                words[index, token_id // 32] |= np.uint32(1 << (token_id % 32))
    return torch.from_numpy(words.view(np.int32))


def make_batch(rows: Sequence[Row], vocabulary: int) -> SamplingBatch:
    tensors = {
        name: torch.tensor([getattr(r, name) for r in rows], dtype=kind) for name, kind in FIELDS.items()
    }
    return SamplingBatch(
        **tensors,
        seed=torch.tensor([signed(row.seed) for row in rows], dtype=torch.int64),
        prompt=token_lists([row.prompt for row in rows]),
        output=token_lists([row.output for row in rows]),
        bias=token_lists([list(row.bias) for row in rows], [list(row.bias.values()) for row in rows]),
        forbidden=token_lists([row.forbidden for row in rows]),
        allowed=allowed_words(rows, vocabulary),
    )


# The two functions that a reading of the clause needs


def exact_probability(scaled: np.float32) -> float:
    return math.exp(float(scaled))


def rounded_v(word: int) -> float:
    """min((word + 1/2) * 2**-32, 1 - 2**-24), word + 1/2 rounded to float32 once."""
    return min(float(F32(word + 0.5)) * 2.0**-32, 1.0 - 2.0**-24)


def exact_noise(word: int) -> float:
    return -math.log(-math.log1p(-rounded_v(word)))


# The clause, and what can be planted in it


@dataclass(frozen=True)
class Reading:
    """How to read the clause. Everything but the defaults of the last five fields is a planted mistake."""

    probability: Callable[[np.float32], float] = exact_probability
    noise: Callable[[int], float] = exact_noise
    noise_key: str = "id"
    """`id`; mistakes: `rank` (place among survivors), `row`, `step` (batch size as a clock)"""
    ties: str = "lower"
    top_p_sum: str = "integer"
    """`integer`; mistake: `split` (float32 partial sums, as many as there are rows in the batch)"""
    top_p_for: str = "row"
    """`row`; mistake: `any` (one row that uses top-p switches the path of all)"""
    exclusion: str = "flag"
    """`flag`; mistake: `value` (a lowest float that ties with honest logits)"""


CLAUSE = Reading()
LOWEST = F32(-3.4028235e38)


def processed_logits(logits: np.ndarray, row: Row) -> tuple[list[np.float32], set[int]]:
    """(logits after penalties and bias, ids that may be chosen)."""
    values = [F32(x) for x in logits]
    counts = Counter(row.output)
    for token_id in set(row.prompt) | set(row.output):
        value, repetition = values[token_id], F32(row.repetition_penalty)
        value = value / repetition if value > 0 else value * repetition
        if counts[token_id]:
            value = value - F32(row.frequency_penalty) * F32(counts[token_id])
            value = value - F32(row.presence_penalty)
        values[token_id] = value
    for token_id, bias in row.bias.items():
        values[token_id] = values[token_id] + F32(bias)
    ids = set(range(len(values))) if row.allowed is None else set(row.allowed)
    return values, ids - set(row.forbidden)


def top_p_prefix(ranked: list[int], scaled: dict, row: Row, reading: Reading, rows: int) -> list[int]:
    if reading.top_p_sum == "split":
        weights = np.array([reading.probability(scaled[i]) for i in sorted(ranked)], F32)
        total = F32(0)
        for part in np.array_split(weights, rows):
            total = total + np.add.accumulate(part, dtype=F32)[-1] if part.size else total
        goal: float = float(F32(row.top_p) * total)
        sizes = [reading.probability(scaled[i]) for i in ranked]
    else:
        sizes = [math.floor(reading.probability(scaled[i]) * 2.0**40) for i in ranked]
        goal = math.ceil(float(F32(row.top_p)) * float(sum(sizes)))
    reached, kept = 0, 0
    while kept < len(ranked) and (reached < goal or kept == 0):
        reached += sizes[kept]
        kept += 1
    return ranked[:kept]


def survivors_of(
    values: list[np.float32], ids: set[int], row: Row, reading: Reading, rows: int, any_top_p: bool
):
    """(ids in total order, scaled logits by id)."""
    best = max(values[i] for i in ids)
    scaled = {i: -((best - values[i]) / F32(row.temperature)) for i in ids}
    sign = 1 if reading.ties == "lower" else -1
    ranked = sorted(ids, key=lambda i: (-scaled[i], sign * i))
    if row.top_k > 0:
        ranked = ranked[: row.top_k]
    if row.top_p < 1.0 or any_top_p:
        ranked = top_p_prefix(ranked, scaled, row, reading, rows)
    if row.min_p > 0.0:
        ranked = [i for i in ranked if reading.probability(scaled[i]) >= F32(row.min_p)]
    return ranked, scaled


def noise_id(token_id: int, rank: int, index: int, rows: int, reading: Reading) -> int:
    return {"id": token_id, "rank": rank, "row": token_id + 4 * index, "step": token_id + 4 * rows}[
        reading.noise_key
    ]


@np.errstate(over="ignore", invalid="ignore")
def sample_row(logits: np.ndarray, row: Row, reading: Reading, index: int, rows: int, any_top_p: bool):
    """(token id, fault, processed logprobs float64) of one row."""
    nothing = np.full(len(logits), -np.inf)
    values, ids = processed_logits(logits, row)
    if not np.isfinite(logits).all() or not np.isfinite(values).all():
        return -1, 1, nothing
    if reading.exclusion == "value":
        values = [x if i in ids else LOWEST for i, x in enumerate(values)]
        ids = set(range(len(values)))
    if not ids:
        return -1, 2, nothing
    sign = 1 if reading.ties == "lower" else -1
    if row.temperature == 0.0:
        token_id = min(ids, key=lambda i: (-values[i], sign * i))
        nothing[token_id] = 0.0
        return token_id, 0, nothing
    ranked, scaled = survivors_of(values, ids, row, reading, rows, any_top_p)
    total = math.fsum(reading.probability(scaled[i]) for i in ranked)
    for i in ranked:
        nothing[i] = float(scaled[i]) - math.log(total)
    scores = {}
    for rank, i in enumerate(ranked):
        word = token_word(row.seed, row.position, row.sample_index, noise_id(i, rank, index, rows, reading))
        scores[i] = scaled[i] + F32(reading.noise(word))
    return min(ranked, key=lambda i: (-scores[i], sign * i)), 0, nothing


def reference_sample(
    logits: torch.Tensor, rows: Sequence[Row], want_processed: bool = False, reading: Reading = CLAUSE
) -> SampleResult:
    """The clause over a batch; rows meet only in planted mistakes."""
    any_top_p = reading.top_p_for == "any" and any(row.top_p < 1.0 for row in rows)
    answers = [
        sample_row(logits[index].numpy(), row, reading, index, len(rows), any_top_p)
        for index, row in enumerate(rows)
    ]
    processed = torch.tensor(np.array([answer[2] for answer in answers]), dtype=torch.float32)
    return SampleResult(
        torch.tensor([answer[0] for answer in answers]),
        torch.tensor([answer[1] for answer in answers], dtype=torch.uint8),
        processed if want_processed else None,
    )
