"""Prompts for the checks: plain arithmetic stories, the same on every machine, as long as wanted."""

from __future__ import annotations

import random
from collections.abc import Iterator

from samebits.verify.target import Target

OPENINGS = (
    "Tell me about Richard Feynman: ",
    "A baker sells 12 loaves in the morning and three times as many in the afternoon. How many in all?",
    "Write down 1000 random numbers, one a line.",
    "The function sorted returns a new list",
    "x",
)
SENTENCES_AT_A_TIME = 8
_NAMES = ("Ana", "Bela", "Carlos", "Dina", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena")
_THINGS = ("apples", "books", "coins", "stamps", "marbles", "tickets", "pencils", "eggs", "cards", "nails")
_STORIES = (
    "{a} has {x} {thing} and {b} gives {a} {y} more.",
    "{a} packs {x} boxes with {y} {thing} in each of them.",
    "{a} shares {x} {thing} with {b}, who already had {y}.",
    "Every day {a} sells {x} {thing} and {b} sells {y}.",
    "{b} buys {x} {thing} at {y} cents a piece from {a}.",
)


def sentences(seed: int) -> Iterator[str]:
    """An endless run of short arithmetic stories that never repeats for long."""
    source = random.Random(seed)
    while True:
        first, second = source.sample(_NAMES, 2)
        story = source.choice(_STORIES)
        yield story.format(
            a=first,
            b=second,
            x=source.randrange(2, 100),
            y=source.randrange(2, 100),
            thing=source.choice(_THINGS),
        )


def long_prompt(target: Target, tokens: int, seed: int) -> list[int]:
    """Exactly `tokens` token ids of running text."""
    # A few sentences at a time: a server may count a whole long text against its context.
    stories = sentences(seed)
    ids: list[int] = []
    while len(ids) < tokens:
        ids += target.encode(" ".join(next(stories) for _ in range(SENTENCES_AT_A_TIME)) + " ")
    return ids[:tokens]
