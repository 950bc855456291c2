"""How many pages the running requests will want at once, foretold from the lengths of recent answers.

A request that runs will grow until its answer ends, and nobody knows where. Each is dealt one of the lengths at which
recent answers ended, of those longer than what it has by now, so that all of them together end as recent answers did.
Then the most pages that they will hold at any moment follow from walking through the ends. No clock and no chance
is in it: what is foretold is a function of the requests and of the answers that ended before.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

import numpy as np

from samebits.schedule.request import Request

REMEMBERED_ANSWERS = 128
ASSUMED_ANSWERS = 4
"""at the start: enough that the first short ones do not pass for all, and few enough to be outvoted soon"""
STEP_PRICE = 180
"""prompt tokens that take as long as what a step costs however few its rows are: reading the weights. It follows from
a processor's arithmetic and bandwidth, and is 187 for an H200 by `results/`; a wrong one changes speed alone"""
LEAST_GAIN = 2
"""times its cost, for expectations err"""
_SPREAD = (5**0.5 - 1) / 2
"""multiples of the golden section, less their whole part, fill 0 to 1 evenly however many there are"""


class Foresight:
    """What the answers that ended last tell of those that run.

    An answer that its limit cut would have gone on, so it tells only that answers may be longer than it. Where no end
    is known, answers are taken to have `assumed` tokens, or as many as the longest, or twice what they have by now.
    """

    def __init__(
        self, assumed: int, remembered: int = REMEMBERED_ANSWERS, step_price: float = STEP_PRICE
    ) -> None:
        start = [(assumed, True)] * min(ASSUMED_ANSWERS, remembered)
        self._assumed = assumed
        self._step_price = step_price
        self._recent = deque(start, maxlen=remembered)
        self._ascending = start.copy()
        """(length, whether its limit cut it)"""
        self._known: tuple[np.ndarray, np.ndarray] | None = None

    def learn(self, tokens: int, cut: bool) -> None:
        """An answer of so many tokens has ended, or its limit has cut it. Of too many, the oldest is forgotten."""
        if len(self._recent) == self._recent.maxlen:
            del self._ascending[bisect_left(self._ascending, self._recent[0])]
        self._recent.append((tokens, cut))
        insort(self._ascending, (tokens, cut))
        self._known = None

    def remaining(self, requests: Sequence[Request]) -> np.ndarray:
        """Tokens that each of these requests is expected to add to what it has (int64 `[requests]`): up to the length
        dealt to it, or to its limit."""
        places = np.array([request.arrival for request in requests]) * _SPREAD % 1.0
        lengths = np.array([len(request.tokens) + request.unread for request in requests])
        limits = np.array([request.length_limit for request in requests])
        answers = lengths - np.array([request.prompt_length for request in requests])
        known, going_on = self._curve()
        past = going_on[np.searchsorted(known, answers, side="right")]
        # The first length past which fewer go on than it is dealt.
        dealt = np.searchsorted(-going_on, (places - 1) * past, side="right") - 1
        endless = np.maximum(2 * answers, max(self._assumed, int(known[-1])))
        expected = np.where(dealt < len(known), known[np.minimum(dealt, len(known) - 1)], endless)
        return np.minimum(expected - answers, limits - lengths)

    def most_pages(self, requests: Sequence[Request], held: np.ndarray, page_tokens: int) -> float:
        """The most pages that these requests are expected to hold at any moment, which hold `held` now
        (`[requests]`)."""
        return most_pages(held, self.remaining(requests), page_tokens)

    def is_worth_a_start(
        self, requests: Sequence[Request], held: np.ndarray, page_tokens: int, pages: int
    ) -> bool:
        """Whether the last of these requests should start, when all of them hold `held` of `pages` pages with it.

        It should when they fit until each has ended; and when it gets on far enough before it must give its pages up.
        What it gains until then is its part of what each step costs however many share it. What that costs is to
        compute its tokens again.
        """
        steps = steps_until_short(held, self.remaining(requests), page_tokens, pages)
        if math.isinf(steps):
            return True
        gain, cost = steps * self._step_price / len(requests), requests[-1].length + steps
        return gain > LEAST_GAIN * cost

    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        """The lengths ascending (int64 `[n]`), and the shares of answers that go on past the first 0, 1, ... n of
        them (float64 `[n + 1]`), as Kaplan and Meier estimate them."""
        if self._known is None:
            known, cut = np.array(self._ascending).T
            rest = np.arange(len(known), 0, -1)
            going_on = np.cumprod(np.where(cut, 1.0, (rest - 1) / rest))
            self._known = known, np.concatenate(([1.0], going_on))
        return self._known


def most_pages(held: np.ndarray, remaining: np.ndarray, page_tokens: int) -> float:
    """The most pages that requests hold at any moment which hold `held` now, take a token a step, and give all back
    after `remaining` tokens (both `[requests]`)."""
    steps, held_then, there = _ends(held, remaining)
    return float(np.max(held_then + there * (steps / page_tokens)))


def steps_until_short(held: np.ndarray, remaining: np.ndarray, page_tokens: int, pages: int) -> float:
    """After how many steps such requests want more than `pages`; infinite: never."""
    steps, held_then, there = _ends(held, remaining)
    short = held_then + there * (steps / page_tokens) > pages
    if not short.any():
        return math.inf
    first = int(np.argmax(short))
    return max(0.0, float((pages - held_then[first]) * page_tokens / there[first]))


def _ends(held: np.ndarray, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ends in order: after how many steps each comes, what those hold now that are there until then, and their
    number."""
    order = np.argsort(remaining, kind="stable")
    return remaining[order], np.cumsum(held[order][::-1])[::-1], np.arange(len(order), 0, -1)
