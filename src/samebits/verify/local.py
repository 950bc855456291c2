"""The target in this process: an `LLM`."""

from __future__ import annotations

from collections.abc import Sequence

from samebits.errors import RequestError
from samebits.llm import LLM, Completion
from samebits.sampling_params import SamplingParams
from samebits.schedule.messages import TokenLogprobs
from samebits.verify.answers import Answer, TokenBits, check_whole, float_bits
from samebits.verify.target import TargetFacts


class LocalTarget:
    """An engine in this process. It closes the `LLM` that it is given."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        facts = llm.facts
        details = {"numerics": facts.profile, "fingerprint": facts.fingerprint}
        self._facts = TargetFacts(facts.model, facts.context_length, details)

    def facts(self) -> TargetFacts:
        return self._facts

    def encode(self, text: str) -> list[int]:
        try:
            return self._llm.encode(text)
        except RequestError:
            # No tokenizer, as a shape with dummy weights: any ids will do, and the text's bytes are some.
            return [byte % self._llm.facts.vocabulary for byte in text.encode()]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[SamplingParams],
        score_prompt: bool = False,
    ) -> list[Answer]:
        results = self._llm.generate(
            [list(ids) for ids in prompts],
            list(sampling),
            return_logprob=True,
            logprob_start_len=0 if score_prompt else -1,
            progress=False,
        )
        return [whole_answer(result) for result in results]

    def flush(self) -> bool:
        self._llm.flush_cache()
        return True

    def close(self) -> None:
        self._llm.close()


def whole_answer(completion: Completion) -> Answer:
    """A completion with logprobs as bits. Raises `EngineError` for one that failed or was cut short."""
    output, prompt = token_bits(completion.logprobs), token_bits(completion.prompt_logprobs)
    answer = Answer(output, prompt, completion.cached_tokens)
    check_whole(answer, completion.finish_reason.type, completion.finish_reason.message)
    return answer


def token_bits(entries: Sequence[TokenLogprobs] | None) -> tuple[TokenBits, ...]:
    """The engine's logprobs as bits; none where none were asked for."""
    return tuple(
        TokenBits(entry.token_id, None if entry.logprob is None else float_bits(entry.logprob))
        for entry in entries or ()
    )
