"""The engines that the offline benchmark races: Samebits, and transformers in float32, with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from samebits.config import ModelConfig
from samebits.errors import ConfigError
from samebits.llm import LLM
from samebits.models.dummy import dummy_source
from samebits.models.load import DUMMY_DTYPE, ModelFiles, read_model_files
from samebits.models.weights import expected_shapes
from samebits.sampling_params import SamplingParams


class Contender(Protocol):
    """Something that answers prompts greedily with exactly so many tokens each."""

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]: ...


class Samebits:
    """Our engine; all prompts at once."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        params = SamplingParams(
            temperature=0.0, repetition_penalty=1.0, max_new_tokens=new_tokens, ignore_eos=True
        )
        results = self._llm.generate([list(ids) for ids in prompts], params)
        return [list(result.token_ids) for result in results]


class TransformersOneByOne:
    """`transformers`, one prompt after the other."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        return [transformers_generate(self._model, [ids], new_tokens)[0] for ids in prompts]


class TransformersPadded:
    """`transformers`, all prompts in one batch, padded on the left."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        return transformers_generate(self._model, prompts, new_tokens)


def transformers_generate(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """Greedy, exactly `new_tokens` each."""
    width = max(len(ids) for ids in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
        output: Tensor = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [row.tolist() for row in output[:, width:]]


def load_transformers(config: ModelConfig) -> Any:
    """The model of `config` in `transformers`, float32, with exactly the weights that we use.

    Raises `ConfigError` where transformers is not installed.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(
            "samebits bench offline compares with transformers: pip install transformers"
        ) from error
    logging.disable_progress_bar()
    files = read_model_files(config)
    if config.load_format != "dummy":
        model = AutoModelForCausalLM.from_pretrained(files.folder, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(files.folder), dtype=torch.float32
        )
        load_dummy_weights(model, files, config)
    model.generation_config = GenerationConfig()
    return model.eval()


def load_dummy_weights(model: Any, files: ModelFiles, config: ModelConfig) -> None:
    """Give a transformers model the seeded weights that `--load-format dummy` makes."""
    from dataclasses import replace

    dtype = DUMMY_DTYPE if config.dtype == "auto" else config.dtype
    spec = replace(files.spec, dtype=dtype)
    source = dummy_source(spec, files.family.names, config.dummy_seed)
    state = {name: source.tensor(name).float() for name in expected_shapes(spec, files.family.names)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    untied = [name for name in missing if not (spec.tied_embeddings and name == "lm_head.weight")]
    if untied or unexpected:
        raise ConfigError(f"transformers wants other tensors: missing {untied}, unexpected {unexpected}")
    model.tie_weights()
