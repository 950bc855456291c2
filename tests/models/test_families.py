"""Every family against `transformers`: a numerical comparison with a stated bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from samebits.numerics.operators import Operators

from .checkpoints import load, make_reference, run, save
from .plain_operators import PlainOperators

LARGEST_ERROR = 2e-5
"""Of the row's largest |logit|."""
CLEAR_LEAD = 1e-4
"""Where the top two logits differ by more, the greedy token must agree."""
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "qwen2": ("qwen2", {}),
    "qwen2-tied-ratio-7": (
        "qwen2",
        {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 112, "tie_word_embeddings": True},
    ),
    "qwen2-idle-window": ("qwen2", {"use_sliding_window": False, "sliding_window": 8}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-wide-heads-tied": ("qwen3", {"head_dim": 64, "tie_word_embeddings": True}),
    "qwen3-bias-ratio-5": (
        "qwen3",
        {"head_dim": 32, "num_attention_heads": 10, "num_key_value_heads": 2, "attention_bias": True},
    ),
    "llama": ("llama", {}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 64}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-narrow-heads": ("mistral", {"sliding_window": 512, "head_dim": 16, "num_key_value_heads": 4}),
}
PROMPT_LENGTHS = (1, 5, 130)


def prompts(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


def check_against(reference: PreTrainedModel, folder: Path, operators: Operators, cut: int = 0) -> None:
    """Compare the logits of every position of every prompt."""
    model = load(folder, operators)
    texts = prompts(model.spec.vocabulary)
    for prompt, ours in zip(texts, run(model, operators, texts, cut), strict=True):
        with torch.no_grad():
            theirs = reference(torch.tensor([prompt])).logits[0].float()
        errors = (ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)
        assert errors.max() <= LARGEST_ERROR
        top = theirs.topk(2, dim=-1).values
        clear = top[:, 0] - top[:, 1] > CLEAR_LEAD
        assert clear.float().mean() > 0.9
        assert torch.equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])


@pytest.mark.parametrize("case", CASES)
def test_logits_match_transformers(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    reference = make_reference(family, **changes)
    check_against(reference, save(reference, tmp_path), PlainOperators())


def test_sharded_checkpoint_matches(tmp_path: Path) -> None:
    reference = make_reference("qwen3", head_dim=32)
    save(reference, tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check_against(reference, tmp_path, PlainOperators())


def test_a_wrong_position_or_neighbour_shows(tmp_path: Path) -> None:
    """The comparison can fail: an error of one position or one swapped token leaves the bound."""
    reference = make_reference("qwen3", head_dim=32)
    operators = PlainOperators()
    model = load(save(reference, tmp_path), operators)
    prompt = prompts(model.spec.vocabulary)[2]
    right = run(model, operators, [prompt])[0]
    scale = right[-1].abs().max()
    swapped = [prompt[1], prompt[0], *prompt[2:]]
    assert (run(model, operators, [swapped])[0][-1] - right[-1]).abs().max() > 100 * LARGEST_ERROR * scale
