"""What the arithmetic word problems are made of: people, things, and a problem in the making."""

from __future__ import annotations

import random

PEOPLE = tuple(
    (name, "she", "her") for name in (
        "Ana", "Mia", "Sofia", "Emma", "Lena", "Nora", "Ruth", "Clara", "Alice", "Maria", "Julia", "Sara",
        "Hanna", "Priya", "Yuki", "Fatima", "Grace", "Olga", "Ines", "Zoe", "Leila", "Tessa",
        "Amara", "Wanda",
    )
) + tuple(
    (name, "he", "his") for name in (
        "Tom", "Ben", "Paul", "Omar", "Luis", "Jack", "Ivan", "Noah", "Karl", "Peter", "Sam", "Leo",
        "Hugo", "Raj", "Kenji", "Ahmed", "David", "Felix", "Marco", "Oscar", "Pavel", "Victor",
        "Simon", "Theo",
    )
)  # fmt: skip
THINGS = (
    "apples", "marbles", "stickers", "books", "pencils", "cards", "shells", "stamps", "coins",
    "cookies", "eggs",
    "oranges", "beads", "buttons", "photos", "toy cars", "balloons", "candies", "flowers",
    "postcards", "magnets",
)  # fmt: skip
GOODS = (
    ("notebook", "notebooks"), ("pen", "pens"), ("ticket", "tickets"), ("shirt", "shirts"), ("cake",
    "cakes"),
    ("lamp", "lamps"), ("plant", "plants"), ("mug", "mugs"), ("toy", "toys"), ("sandwich", "sandwiches"),
    ("puzzle", "puzzles"), ("brush", "brushes"), ("hat", "hats"), ("ball", "balls"), ("melon", "melons"),
)  # fmt: skip
HOLDERS = (("box", "boxes"), ("bag", "bags"), ("basket", "baskets"), ("packet", "packets"), ("jar", "jars"))


class Rejected(Exception):
    """The numbers drawn make no sensible problem."""


class Draft:
    """A problem in the making: what is said, how it is worked out, and its numbers."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.numbers: list[int] = []
        self.shape: list[str] = []
        self.said: list[str] = []
        self.working: list[str] = []
        self.result = 0
        self.people = rng.sample(PEOPLE, 3)

    def num(self, low: int, high: int) -> int:
        """Draw a number and put it into the key."""
        self.numbers.append(self.rng.randint(low, high))
        return self.numbers[-1]

    def pick(self, *options: str) -> str:
        """Choose a wording; wordings are not part of the key."""
        return self.rng.choice(options)

    def branch(self, *options: str) -> str:
        """Choose what happens; this is part of the key."""
        self.shape.append(self.rng.choice(options))
        return self.shape[-1]

    def person(self, index: int = 0) -> tuple[str, str, str]:
        """Name, subject pronoun and possessive of one of the people."""
        return self.people[index]

    def say(self, *options: str) -> None:
        """Add one sentence to the question, in one of these wordings."""
        self.said.append(self.rng.choice(options))

    def step(self, a: int, op: str, b: int, *wordings: str) -> int:
        """Add one step of working; ``{}`` in the wording stands for ``a op b = result``."""
        if op == "/" and (b == 0 or a % b):
            raise Rejected
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[op]
        if not 0 < value < 10_000:
            raise Rejected
        wording = self.rng.choice(wordings)
        self.working.append(wording.replace("{}", f"{a} {op} {b} = {value}"))
        self.result = value
        return value
