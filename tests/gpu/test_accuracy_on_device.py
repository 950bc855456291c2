"""Logprobs of the bundled model on a GPU against transformers in float64 on the same weights: no worse than
transformers in bfloat16, which rounds where we do."""

from __future__ import annotations

import pytest
import torch
from gpu_engine import gpu_engine

from samebits.engine.messages import EngineRequest, LogprobOptions
from samebits.models.locate import BUNDLED
from samebits.sampling_params import ResolvedSampling

pytestmark = pytest.mark.gpu

LENGTHS = (3, 130, 700)
MEAN_BOUND = 1.25
"""Our mean error over that of transformers in bfloat16."""


def scored(prompts: list[list[int]]) -> list[torch.Tensor]:
    """Raw logprobs float64 of every prompt token but the first, by the engine."""
    engine = gpu_engine("bundled", "safetensors", step_tokens=256)
    for number, prompt in enumerate(prompts):
        sampling = ResolvedSampling(max_new_tokens=0)
        logprobs = LogprobOptions(prompt_start=0)
        engine.submit(EngineRequest(rid=str(number), prompt_ids=prompt, sampling=sampling, logprobs=logprobs))
    found: dict[str, list[float]] = {}
    while engine.has_work():
        for event in engine.step():
            for entry in event.prompt_logprobs or ():
                if entry.logprob is not None:
                    found.setdefault(event.rid, []).append(entry.logprob)
    engine.close()
    return [torch.tensor(found[str(number)], dtype=torch.float64) for number in range(len(prompts))]


def reference(prompts: list[list[int]], dtype: torch.dtype) -> list[torch.Tensor]:
    """The same by transformers."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        BUNDLED["bundled"], dtype=dtype, attn_implementation="eager"
    ).cuda()
    results = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt], device="cuda")
            logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
            results.append(logprobs.gather(1, ids[0, 1:, None])[:, 0].cpu())
    return results


def test_no_worse_than_transformers_in_bfloat16() -> None:
    prompts = [[(11 * number + 7 * place + place * place % 13) % 900 for place in range(length)]
               for number, length in enumerate(LENGTHS)]  # fmt: skip
    exact = torch.cat(reference(prompts, torch.float64))
    theirs = (torch.cat(reference(prompts, torch.bfloat16)) - exact).abs()
    ours = (torch.cat(scored(prompts)) - exact).abs()
    print(f"mean error: ours {ours.mean():.3e}, transformers in bfloat16 {theirs.mean():.3e}")
    assert ours.mean() <= MEAN_BOUND * theirs.mean()
    assert ours.max() <= 2 * theirs.max() + 1e-3
    # The inverse: logprobs that stand one place off are far away.
    assert (torch.cat(scored(prompts)).roll(1) - exact).abs().mean() > 10 * ours.mean()
