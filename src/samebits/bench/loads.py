"""The loads of `samebits bench serving`: how many requests, and how long each is.

`conversations` resembles the first turns of ShareGPT without its data. Lengths are drawn from log-normal distributions
with a fixed seed: prompts around a median of 90 tokens (sigma 1.4) and answers around one of 135 (sigma 0.9), each
from 4 to 2,048 tokens. Means are then about 220 and 200 tokens, most requests are short, and a few are very long. A
result says what was drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

SEED = 42
PROMPT_MEDIAN, PROMPT_SIGMA = 90, 1.4
ANSWER_MEDIAN, ANSWER_SIGMA = 135, 0.9
LEAST_TOKENS, MOST_TOKENS = 4, 2048
REQUESTS = 256
NAMES = ("1k/1k", "4k/4k", "conversations")


@dataclass(frozen=True)
class Asking:
    """The lengths of one request in tokens."""

    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Load:
    """Requests that all come at once."""

    name: str
    requests: tuple[Asking, ...]

    @property
    def tokens(self) -> int:
        return sum(one.prompt_tokens + one.new_tokens for one in self.requests)

    @property
    def new_tokens(self) -> int:
        return sum(one.new_tokens for one in self.requests)

    def facts(self) -> dict[str, Any]:
        """What was asked, for a result."""
        return {
            "name": self.name,
            "requests": len(self.requests),
            "prompt tokens": _described([one.prompt_tokens for one in self.requests]),
            "new tokens": _described([one.new_tokens for one in self.requests]),
        }


def uniform(name: str, requests: int, prompt_tokens: int, new_tokens: int) -> Load:
    """Requests of one length."""
    return Load(name, (Asking(prompt_tokens, new_tokens),) * requests)


def conversations(requests: int, seed: int = SEED) -> Load:
    """Requests of very different lengths; see above."""
    source = random.Random(seed)
    return Load(
        NAMES[2],
        tuple(
            Asking(_drawn(source, PROMPT_MEDIAN, PROMPT_SIGMA), _drawn(source, ANSWER_MEDIAN, ANSWER_SIGMA))
            for _ in range(requests)
        ),
    )


def loads(requests: int = REQUESTS) -> tuple[Load, ...]:
    """The loads of the benchmark, in the order of their names."""
    return (
        uniform(NAMES[0], requests, 1024, 1024),
        uniform(NAMES[1], requests, 4096, 4096),
        conversations(requests),
    )


def _drawn(source: random.Random, middle: float, sigma: float) -> int:
    length = round(middle * source.lognormvariate(0.0, sigma))
    return min(max(length, LEAST_TOKENS), MOST_TOKENS)


def _described(lengths: Sequence[int]) -> dict[str, float]:
    return {
        "mean": round(mean(lengths), 1),
        "median": median(lengths),
        "least": min(lengths),
        "most": max(lengths),
    }
