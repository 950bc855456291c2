"""A target whose answers are hashes of what a row may know, and, on demand, of what it must not know."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from samebits.sampling_params import SamplingParams
from samebits.verify.answers import Answer, TokenBits
from samebits.verify.target import TargetFacts

VOCABULARY = 997
FAULTS = (
    "batch size",
    "neighbour's parameters",
    "place in the batch",
    "only the last member",
    "cache",
    "cached beginning",
    "prefill is not decode",
    "one bit of one late logprob",
    "token",
)


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def _bits(*parts: object) -> int:
    return int(struct.unpack("<I", struct.pack("<f", -(_hash(*parts) % 10_000_019) / 1e6))[0])


@dataclass
class FakeTarget:
    """Logprobs hash the prefix; sampled tokens hash prefix, parameters and position."""

    fault: str = ""
    context_length: int = 8192
    cache: bool = True
    tells_cached: bool = True
    noise_by_position: bool = True
    """False: by the number of the draw, as an honest engine may do"""
    held: set[tuple[int, ...]] = field(default_factory=set)
    requests: int = 0

    def facts(self) -> TargetFacts:
        return TargetFacts("fake", self.context_length, {"fault": self.fault})

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in text]

    def flush(self) -> bool:
        self.held.clear()
        return True

    def close(self) -> None:
        pass

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[SamplingParams],
        score_prompt: bool = False,
    ) -> list[Answer]:
        self.requests += len(prompts)
        return [
            self._answer(list(ids), parameters, score_prompt, self._leak(member, sampling))
            for member, (ids, parameters) in enumerate(zip(prompts, sampling, strict=True))
        ]

    def _leak(self, member: int, sampling: Sequence[SamplingParams]) -> object:
        """What of the batch reaches this row's arithmetic: None in an honest engine."""
        last = member == len(sampling) - 1 and len(sampling) > 1
        seen = {
            "batch size": len(sampling) > 3,
            "neighbour's parameters": any(one != sampling[member] for one in sampling),
            "place in the batch": member == 3,
            "only the last member": last,
            "one bit of one late logprob": last,
            "token": last,
        }
        return self.fault if seen.get(self.fault) else None

    def _answer(self, ids: list[int], parameters: SamplingParams, score: bool, leak: object) -> Answer:
        assert len(ids) + (parameters.max_new_tokens or 0) <= self.context_length
        warm = self.cache and tuple(ids) in self.held
        beginnings = self.held - {tuple(ids)}
        if self.fault == "cached beginning" and any(tuple(ids[: len(held)]) == held for held in beginnings):
            leak = "cached beginning"
        self.held.add(tuple(ids))
        if self.fault == "cache" and warm:
            leak = "cache"
        prompt = [TokenBits(ids[0], None)]
        prefix = _hash("start", ids[0])
        for token in ids[1:]:
            prompt.append(TokenBits(token, _bits(prefix, token)))
            prefix = _hash(prefix, token)
        output = []
        for step in range(parameters.max_new_tokens or 0):
            place = len(ids) + step if self.noise_by_position else step
            token = self._token(prefix, parameters, place)
            late = step == 5
            if leak == "token" and late:
                token = (token + 1) % VOCABULARY
            bits = _bits(prefix, token)
            if leak == "one bit of one late logprob":
                bits ^= int(late)
            elif leak not in (None, "token") or (self.fault == "prefill is not decode" and late):
                bits ^= 1
            output.append(TokenBits(token, bits))
            prefix = _hash(prefix, token)
        cached = (len(ids) - 1 if warm else 0) if self.tells_cached else None
        return Answer(tuple(output), tuple(prompt) if score else (), cached)

    @staticmethod
    def _token(prefix: int, parameters: SamplingParams, position: int) -> int:
        if parameters.temperature == 0:
            return (
                _hash("greedy", prefix, parameters.repetition_penalty, parameters.presence_penalty)
                % VOCABULARY
            )
        return _hash(prefix, position, parameters.seed, parameters.top_p, parameters.top_k) % VOCABULARY
