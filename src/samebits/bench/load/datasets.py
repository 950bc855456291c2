"""What a server is asked under load: prompts and answer lengths, a function of the seed alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from samebits.errors import ConfigError

FIRST_TOKEN = 100
"""ids below are left to special tokens and single bytes"""
LONGEST_SHARED = 1024
"""ShareGPT prompts, and prompts with their answers, above this and twice this are left out, as others do"""
WORDS = (
    "river stone garden window letter market winter silver engine mountain bread paper candle forest number music "
    "harbour cloud ladder copper orange village bridge story wheel lantern feather island pocket thunder"
).split()


@dataclass(frozen=True)
class Question:
    """One request: a text, or token ids; and the most output tokens."""

    prompt: str | tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens, drawn evenly from [(1 - spread) n, (1 + spread) n]."""

    prompt: int
    output: int
    spread: float = 0.0

    def draw(self, source: random.Random) -> tuple[int, int]:
        return self._around(self.prompt, source), self._around(self.output, source)

    def _around(self, length: int, source: random.Random) -> int:
        low, high = round(length * (1 - self.spread)), round(length * (1 + self.spread))
        return source.randint(max(1, low), max(1, high))


@dataclass(frozen=True)
class Speech:
    """How prompts are written: token ids where the server takes them, else words."""

    vocabulary: int
    as_text: bool

    def draw(self, length: int, source: random.Random) -> tuple[int, ...]:
        """`length` random token ids, or numbers of words."""
        low, high = (
            (0, len(WORDS)) if self.as_text else (min(FIRST_TOKEN, self.vocabulary - 1), self.vocabulary)
        )
        return tuple(source.randrange(low, high) for _ in range(length))

    def write(self, ids: tuple[int, ...]) -> str | tuple[int, ...]:
        """Ids as a prompt."""
        return " ".join(WORDS[number] for number in ids) if self.as_text else ids


def random_questions(count: int, lengths: Lengths, speech: Speech, seed: int) -> list[Question]:
    """Prompts that share nothing."""
    source = random.Random(f"random {seed}")
    drawn = [lengths.draw(source) for _ in range(count)]
    return [Question(speech.write(speech.draw(prompt, source)), output) for prompt, output in drawn]


def shared_prefix_questions(
    count: int, prefixes: int, prefix_tokens: int, lengths: Lengths, speech: Speech, seed: int
) -> list[Question]:
    """Prompts of a prefix, one of `prefixes` in turn, and an end of their own; in random order."""
    source = random.Random(f"shared prefix {seed}")
    shared = [speech.draw(prefix_tokens, source) for _ in range(prefixes)]
    made = []
    for index in range(count):
        end, output = lengths.draw(source)
        made.append(Question(speech.write(shared[index % prefixes] + speech.draw(end, source)), output))
    source.shuffle(made)
    return made


def sharegpt_questions(
    path: Path, count: int, output_tokens: int | None, count_tokens: Callable[[str], int], seed: int
) -> list[Question]:
    """First questions of conversations in a file of ShareGPT's format, drawn at random.

    The answer is as long as the one in the file, or `output_tokens`. Conversations that are very short or long are left
    out. Raises `ConfigError` naming the file where it holds too few or is of another format.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        pairs = [
            (turns[0]["value"], turns[1]["value"])
            for entry in listed
            if len(turns := entry.get("conversations") or entry.get("conversation") or []) >= 2
        ]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no file of ShareGPT's format: {error!r}") from error
    random.Random(f"sharegpt {seed}").shuffle(pairs)
    found: list[Question] = []
    for prompt, answer in pairs:
        if len(found) == count:
            break
        length = count_tokens(prompt)
        wanted = count_tokens(answer) if output_tokens is None else output_tokens
        if 4 <= length <= LONGEST_SHARED and wanted >= 4 and length + wanted <= 2 * LONGEST_SHARED:
            found.append(Question(prompt, wanted))
    if len(found) < count:
        raise ConfigError(f"{path} holds {len(found)} conversations of usual length, fewer than {count}")
    return found
