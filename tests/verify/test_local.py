"""The target in this process."""

from __future__ import annotations

import pytest

from samebits.errors import EngineError
from samebits.generation.samples import FinishReason
from samebits.llm import Completion
from samebits.sampling_params import ResolvedSampling
from samebits.schedule.messages import TokenLogprobs
from samebits.verify.golden import digest
from samebits.verify.local import whole_answer


def completion(finish: FinishReason, tokens: int) -> Completion:
    return Completion(
        prompt=None,
        prompt_index=0,
        prompt_token_ids=(1,),
        text="",
        token_ids=(5,) * tokens,
        finish_reason=finish,
        logprobs=tuple(TokenLogprobs(5, -1.0) for _ in range(tokens)),
        prompt_logprobs=None,
        sampling=ResolvedSampling(),
        fingerprint="",
        cached_tokens=0,
    )


@pytest.mark.parametrize("tokens", [0, 2])
def test_a_request_that_failed_is_no_answer(tokens: int) -> None:
    """A model whose logits are never finite fails every request in the same way, which is not the same bits."""
    failed = completion(FinishReason("error", message="the model's logits are not finite"), tokens)
    for use in (whole_answer, lambda sample: digest([sample])):
        with pytest.raises(EngineError, match=r"cut short.*logits are not finite"):
            use(failed)
    whole = completion(FinishReason("length"), 2)
    assert len(whole_answer(whole).output) == 2 and digest([whole])
