"""Small random checkpoints of each family, made with `transformers`, and the batches to run them with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from samebits.config import ModelConfig
from samebits.models.decoder import forward, logits
from samebits.models.load import LoadedModel, load_model
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import Operators
from samebits.numerics.profiles import make_operators

PAGE_TOKENS = 64
BASE = dict(
    vocab_size=320,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)


def plain_operators() -> Operators:
    """The torch profile in float32 on CPU: quick, and no promise of bits."""
    return make_operators("torch", "cpu")


def make_reference(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model in float32, attention sharpened and biases filled, so that an error shows."""
    config = AutoConfig.for_model(family, **{**BASE, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.data.uniform_(0.5, 1.5)
            elif name.endswith(".bias"):
                parameter.data.normal_(0.0, 0.5)
            elif parameter.ndim == 2:
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.data.normal_(0.0, gain * parameter.shape[1] ** -0.5)
    return model.eval()


def save(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def load(folder: Path, operators: Operators, **settings: Any) -> LoadedModel:
    config = ModelConfig(model=str(folder), **settings)
    return load_model(config, operators, cache=folder / "cache")


def ragged_batch(chunks: list[tuple[int, list[int]]], pages_each: int) -> RaggedBatch:
    """One request for each (start position, token ids); its pages lie apart and in descending order."""
    count = len(chunks)
    table = torch.tensor(
        [[page * count + request for page in reversed(range(pages_each))] for request in range(count)],
        dtype=torch.int32,
    )
    positions, slots, starts = [], [], [0]
    for request, (start, ids) in enumerate(chunks):
        for position in range(start, start + len(ids)):
            page = int(table[request, position // PAGE_TOKENS])
            positions.append(position)
            slots.append(page * PAGE_TOKENS + position % PAGE_TOKENS)
        starts.append(len(positions))
    return RaggedBatch(
        token_ids=torch.tensor([token for _, ids in chunks for token in ids]),
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        query_start=torch.tensor(starts, dtype=torch.int32),
        page_table=table,
        page_tokens=PAGE_TOKENS,
        row_faults=torch.zeros(len(positions), dtype=torch.uint8),
    )


def run(model: LoadedModel, operators: Operators, prompts: list[list[int]], cut: int = 0) -> list[Tensor]:
    """Logits float32 [tokens, vocabulary] of every position of each prompt, all prompts in one batch; with `cut`
    the prompts run in two steps that meet at that position."""
    pages_each = max(len(prompt) for prompt in prompts) // PAGE_TOKENS + 1
    kv = operators.allocate_kv(model.spec.layers, pages_each * len(prompts), PAGE_TOKENS, model.spec.heads)
    pieces: list[list[Tensor]] = [[] for _ in prompts]
    for start, stop in ((0, cut), (cut, None)) if cut else ((0, None),):
        chunks = [(start, prompt[start:stop]) for prompt in prompts]
        batch = ragged_batch(chunks, pages_each)
        hidden = forward(model.spec, model.weights, operators, batch, kv, model.rope)
        assert not batch.row_faults.any()
        rows = logits(model.spec, model.weights, operators, hidden)
        for piece, part in zip(pieces, rows.split([len(ids) for _, ids in chunks]), strict=True):
            piece.append(part)
    return [torch.cat(piece) for piece in pieces]
