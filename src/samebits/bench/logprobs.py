"""`samebits bench logprobs`: how far logprobs lie from those of transformers in float64 on the same weights.

Scoring running text, every token of it: ours, and those of transformers in the type of the weights, each against
transformers in float64. An order that is always the same may cost no accuracy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samebits.bench.facts import machine, write_result
from samebits.bench.load.report import percentile
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError
from samebits.llm import LLM
from samebits.models.load import read_model_files, weights_dtype
from samebits.sampling_params import SamplingParams

TEXT = Path(__file__).parents[1] / "data" / "long_prompt.txt"
LENGTHS = (3, 130, 700, 1900)
"""Tokens of each prompt: one chunk, borders of pages and splits, several chunks."""


def run(
    model: ModelConfig, engine: EngineConfig, lengths: Sequence[int], output: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Score prompts of `lengths` tokens three times and write `output`. Raises `ConfigError` for dummy weights, which
    transformers cannot read, and for prompts without a token to score."""
    if max(lengths) < 2:
        raise ConfigError("--lengths: a prompt's first token has no logprob, so some prompt must have two")
    if model.load_format == "dummy":
        raise ConfigError(
            "samebits bench logprobs compares with transformers, which reads a checkpoint's weights"
        )
    settings: dict[str, Any] = asdict(model) | asdict(engine)
    with LLM(settings.pop("model"), **settings) as llm:
        facts = llm.facts
        prompts = prompts_of(llm, lengths)
        say(f"scoring by samebits, {facts.profile}")
        ours = scored(llm, prompts)
    dtype = weights_dtype(model, read_model_files(model))
    device = torch.device("cuda" if "cuda" in facts.plan else "cpu")
    say("scoring by transformers")
    folder = Path(facts.folder)
    exact = reference(folder, prompts, torch.float64, device)
    theirs = reference(folder, prompts, getattr(torch, dtype), device)
    result = {
        "benchmark": "logprobs",
        **machine(),
        "device": facts.plan.get("device", "cpu"),
        "model": model.model,
        "weights": dtype,
        "profile": facts.profile,
        "fingerprint": facts.fingerprint,
        "prompt tokens": list(lengths),
        "absolute error against transformers in float64": {
            "samebits": errors(ours, exact),
            f"transformers in {dtype}": errors(theirs, exact),
        },
    }
    write_result(output, result)
    return result


def prompts_of(llm: LLM, lengths: Sequence[int]) -> list[list[int]]:
    """Running text, each prompt from where the one before ended; it begins anew where it is too short."""
    ids = llm.encode(TEXT.read_text())
    endless = itertools.cycle(ids)
    return [list(itertools.islice(endless, length)) for length in lengths]


def scored(llm: LLM, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logprobs float64 of every token but the first of each prompt, one after another."""
    found = llm.generate(
        [list(prompt) for prompt in prompts],
        SamplingParams(max_new_tokens=0),
        return_logprob=True,
        logprob_start_len=0,
        progress=False,
    )
    values = [entry.logprob for one in found for entry in (one.prompt_logprobs or ())[1:]]
    return torch.tensor(values, dtype=torch.float64)


def reference(
    folder: Path, prompts: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The same by transformers, computing in `dtype`; the normaliser always in float64. Raises `ConfigError` where
    transformers is not installed."""
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError("this comparison needs transformers: pip install transformers") from error
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(device)
    found = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=device)
            logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
            found.append(logprobs.gather(1, ids[0, 1:, None])[:, 0].cpu())
    return torch.cat(found)


def errors(found: Tensor, exact: Tensor) -> dict[str, float]:
    """Of the absolute error: mean, median, 99th percentile and most."""
    apart = sorted((found - exact).abs().tolist())
    return {
        "mean": sum(apart) / len(apart),
        "median": percentile(apart, 50),
        "99th percentile": percentile(apart, 99),
        "most": apart[-1],
    }


def table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """For people."""
    rows: list[tuple[str, ...]] = [("logprobs by", "mean error", "median", "p99", "most")]
    for name, found in result["absolute error against transformers in float64"].items():
        rows.append((name, *(f"{value:.2e}" for value in found.values())))
    return rows
