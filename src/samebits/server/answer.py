"""One sample's answer to a chat as it comes: its blocks, and what it cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from samebits.generation.samples import FinishReason, Sample, SampleOutput
from samebits.server.openai_logprobs import replay_facts
from samebits.server.openai_prompt import ChatPrompt
from samebits.text.blocks import AnswerBlocks, Block, BlockEvent
from samebits.text.reasoning import count_thoughts, opens_thoughts
from samebits.text.tokenizer import Tokenizer


def call_id(prefix: str, sample: Sample, number: int) -> str:
    """An id that follows from the request, so that a replayed conversation is the same to its last character."""
    sampling = sample.request.sampling
    seen = [sample.request.prompt_ids, sampling.seed, sampling.sample_index, number]
    return prefix + hashlib.sha256(msgspec.json.encode(seen)).hexdigest()[:24]


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of one request."""

    prompt: int
    cached: int
    """of the prompt's, those that the prefix cache had"""
    output: int
    thoughts: int
    """of the output's, those that thoughts took, with their tags"""


class GrowingAnswer:
    """Collects the parts of one sample."""

    def __init__(self, sample: Sample, prompt: ChatPrompt, tokenizer: Tokenizer | None) -> None:
        self.sample = sample
        self.finish: FinishReason | None = None
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._parser = prompt.parser()
        self._blocks = AnswerBlocks()
        self._token_ids: list[int] = []
        self._cached = 0
        self._facts: dict[str, Any] = {}

    @property
    def blocks(self) -> list[Block]:
        """The blocks so far."""
        return self._blocks.blocks

    @property
    def has_calls(self) -> bool:
        return any(block.kind == "call" for block in self.blocks)

    def push(self, part: SampleOutput) -> list[BlockEvent]:
        """What `part` changes."""
        last = part.finish is not None
        self._token_ids.extend(part.token_ids)
        self._cached = max(self._cached, part.cached_tokens)
        if last:
            self.finish = part.finish
            self._facts = replay_facts(self.sample, part)
        return self._blocks.push(self._parser.push(part.text, last), last)

    def counts(self) -> TokenCounts:
        """Tokens so far."""
        thoughts = 0
        if any(block.kind == "reasoning" for block in self.blocks):
            thoughts = count_thoughts(self._pieces(), opens_thoughts(self._prompt.text))
        prompt = len(self.sample.request.prompt_ids)
        return TokenCounts(prompt, self._cached, len(self._token_ids), thoughts)

    def replay(self, with_tokens: bool) -> dict[str, Any]:
        """`samebits` of the finished answer, with its token ids if wanted."""
        if not with_tokens:
            return self._facts
        ids = {"prompt_token_ids": self.sample.request.prompt_ids, "token_ids": self._token_ids}
        return self._facts | ids

    def _pieces(self) -> Iterator[str]:
        if self._tokenizer is None:
            return
        detokenizer = self._tokenizer.detokenizer(self.sample.text.skip_special_tokens)
        for token_id in self._token_ids:
            yield detokenizer.push(token_id)
