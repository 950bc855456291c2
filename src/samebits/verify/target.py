"""What the checks ask of the thing that they check: an engine in this process or a server somewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from samebits.sampling_params import SamplingParams
from samebits.verify.answers import Answer


@dataclass(frozen=True)
class TargetFacts:
    """Who answers."""

    name: str
    """Model and place, for people."""
    context_length: int
    """Longest request in tokens; a huge number where the target does not say."""
    details: dict[str, str]
    """Fingerprint, profile, versions: whatever it tells."""


class Target(Protocol):
    """Something that answers prompts of token ids with token ids and logprobs."""

    def facts(self) -> TargetFacts: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, as this target's tokenizer sees it."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[SamplingParams],
        score_prompt: bool = False,
    ) -> list[Answer]:
        """Answer all prompts together, as one batch as far as the target allows, each with its own parameters.
        `score_prompt` asks for the logprob of every prompt token too. Answers stand in the prompts' order."""

    def flush(self) -> bool:
        """Empty the prefix cache. False where the target has no way to do that."""

    def close(self) -> None: ...
