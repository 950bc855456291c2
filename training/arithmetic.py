"""Seeded arithmetic word problems with worked answers, in the manner of GSM.

A problem is a question, a worked answer whose last line is ``#### N``, and a key: the
template's name and its numbers, without names of people and things. Whether a problem is
held out follows from a hash of that key, so the numbers of a held-out problem were never
seen in that template, whatever the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.stories import STORIES
from training.story import PEOPLE, Draft, Rejected

HELD_OUT_PERCENT = 5
PEOPLE_NAMES = tuple(name for name, _, _ in PEOPLE)

SYSTEM = (
    "You are a helpful assistant.",
    "You are Samebits, a small assistant.",
    "You solve arithmetic word problems step by step.",
    "Answer briefly and show your working.",
)
ASK = ("{}",) * 6 + (
    "Solve this problem: {}",
    "{} Work it out step by step.",
    "{} Show your working.",
    "Please help me with this: {}",
    "Question: {}",
)
TALK = (
    (("Hello!", "Hi", "Hello", "Hi there!", "Hey", "Good morning"),
     "Hello! Ask me an arithmetic word problem, or a question about Python."),
    (("Who are you?", "What are you?", "What is your name?", "What model are you?"),
     "I am the small language model that comes with Samebits. I was trained on the Python "
     "documentation, the standard library, and arithmetic word problems."),
    (("What can you do?", "Help", "What can I ask you?", "How can you help me?"),
     "I can solve arithmetic word problems step by step, answer short questions about the Python "
     "documentation, and continue Python code and prose."),
    (("Thanks!", "Thank you", "Thank you!", "Great, thanks.", "Thanks a lot!"),
     "You are welcome!"),
    (("Bye", "Goodbye!", "See you later."), "Goodbye!"),
)  # fmt: skip

Message = dict[str, str]


@dataclass(frozen=True)
class Problem:
    """A word problem with its worked answer."""

    key: str
    question: str
    answer: str
    result: int
    steps: int

    @property
    def held_out(self) -> bool:
        """Whether this problem belongs to the test split."""
        digest = hashlib.blake2b(self.key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def draw(rng: random.Random) -> Problem:
    """Draw one problem of either split."""
    while True:
        story = rng.choice(STORIES)
        draft = Draft(rng)
        try:
            story(draft)
        except Rejected:
            continue
        numbers = ",".join(map(str, draft.numbers))
        answer = "\n".join([*draft.working, f"#### {draft.result}"])
        shape = "/".join([story.__name__, *draft.shape])
        return Problem(f"{shape}:{numbers}", " ".join(draft.said), answer, draft.result, len(draft.working))


def problems(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """Yield problems of one split without end."""
    rng = random.Random(f"samebits-arithmetic-{seed}")
    while True:
        problem = draw(rng)
        if problem.held_out == held_out:
            yield problem


def conversation(source: Iterator[Problem], rng: random.Random) -> list[Message]:
    """A chat around one or two problems, sometimes with a system turn or small talk."""
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    if rng.random() < 0.03:
        messages += talk(rng, rng.choice((0, 0, 1, 2)))
    for _ in range(2 if rng.random() < 0.2 else 1):
        problem = next(source)
        messages.append({"role": "user", "content": rng.choice(ASK).format(problem.question)})
        messages.append({"role": "assistant", "content": problem.answer})
        if rng.random() < 0.15:
            messages += follow_up(problem, rng)
    if rng.random() < 0.03:
        messages += talk(rng, rng.choice((3, 3, 4)))
    return messages


def talk(rng: random.Random, index: int) -> list[Message]:
    """One exchange of small talk."""
    asked, answer = TALK[index]
    return [
        {"role": "user", "content": rng.choice(asked)},
        {"role": "assistant", "content": answer},
    ]


def follow_up(problem: Problem, rng: random.Random) -> list[Message]:
    """A second turn that computes with the first turn's result."""
    old, n = problem.result, rng.randint(2, 60)
    kinds = [("plus", f"Now add {n} to that.", f"{old} + {n}", old + n)]
    kinds.append(("double", "What is twice that?", f"{old} * 2", old * 2))
    if old > n:
        kinds.append(("minus", f"And if you take away {n} from that?", f"{old} - {n}", old - n))
    if old % 2 == 0:
        kinds.append(("half", "What is half of that?", f"{old} / 2", old // 2))
    _, question, sum_, new = rng.choice(kinds)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"{sum_} = {new}.\n#### {new}"},
    ]


def final_number(answer: str) -> int | None:
    """The number after ``####`` in a worked answer, if there is one."""
    tail = answer.rpartition("####")[2].strip() if "####" in answer else ""
    try:
        return int(tail.split()[0].rstrip("."))
    except (IndexError, ValueError):
        return None


def main() -> None:
    """Write a set of held-out problems as JSON Lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    seen: set[str] = set()
    with args.out.open("w", encoding="utf-8") as file:
        for problem in problems(args.seed, held_out=True):
            if problem.key in seen:
                continue
            seen.add(problem.key)
            row = {"question": problem.question, "answer": problem.answer, "key": problem.key}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if len(seen) == args.count:
                break


if __name__ == "__main__":
    main()
