"""Every family against `transformers`: a numerical comparison with a stated bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.operators import Operators

from .checkpoints import load, make_reference, plain_operators, run, save

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
"""Up to here transformers' angles, position times frequency in float32, are good to the bound."""
LONG_LENGTH = 300
"""Beyond a split of the attention."""


def prompts(vocabulary: int, lengths: Sequence[int] = PROMPT_LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="module", params=["torch", "exact"])
def operators(request: pytest.FixtureRequest) -> Iterator[Operators]:
    if request.param == "torch":
        yield plain_operators()
    else:
        exact = CpuOperators(threads=2)
        yield exact
        exact.close()


def check_against(reference: PreTrainedModel, folder: Path, operators: Operators) -> None:
    """Compare the logits of every position of every prompt."""
    model = load(folder, operators)
    texts = prompts(model.spec.vocabulary)
    for prompt, ours in zip(texts, run(model, operators, texts), strict=True):
        compare(ours, reference, prompt)


def compare(ours: Tensor, reference: PreTrainedModel, prompt: list[int]) -> None:
    """Both bounds, at every position of the prompt."""
    with torch.no_grad():
        theirs = reference(torch.tensor([prompt])).logits[0]
    errors = (ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)
    assert errors.max() <= LARGEST_ERROR
    top = theirs.topk(2, dim=-1).values
    clear = top[:, 0] - top[:, 1] > CLEAR_LEAD
    assert clear.float().mean() > 0.9
    assert torch.equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])


@pytest.mark.parametrize("case", CASES)
def test_logits_match_transformers(case: str, operators: Operators, tmp_path: Path) -> None:
    family, changes = CASES[case]
    reference = make_reference(family, **changes)
    check_against(reference, save(reference, tmp_path), operators)


def test_sharded_checkpoint_matches(operators: Operators, tmp_path: Path) -> None:
    reference = make_reference("qwen3", head_dim=32)
    save(reference, tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check_against(reference, tmp_path, operators)


class DoubleRotary(torch.nn.Module):
    """Plain RoPE whose angles are float64."""

    def __init__(self, theta: float, head_dim: int) -> None:
        super().__init__()
        self.frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.frequencies
        doubled = torch.cat((angles, angles), dim=-1)
        return doubled.cos().to(x.dtype), doubled.sin().to(x.dtype)


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_long_prompt_matches_float64(family: str, operators: Operators, tmp_path: Path) -> None:
    """Against the reference in float64, its angles too: far positions, and keys in two splits."""
    reference = make_reference(family, head_dim=32, sliding_window=None)
    model = load(save(reference, tmp_path), operators)
    reference = reference.double()
    reference.model.rotary_emb = DoubleRotary(model.spec.rope.theta, 32)
    (prompt,) = prompts(model.spec.vocabulary, [LONG_LENGTH])
    compare(run(model, operators, [prompt])[0], reference, prompt)


@pytest.mark.parametrize("cut", [1, 4])
def test_two_steps_match(operators: Operators, cut: int, tmp_path: Path) -> None:
    reference = make_reference("qwen3", head_dim=32)
    model = load(save(reference, tmp_path), operators)
    texts = [prompt for prompt in prompts(model.spec.vocabulary) if len(prompt) > cut]
    for prompt, ours in zip(texts, run(model, operators, texts, cut), strict=True):
        compare(ours, reference, prompt)


def test_exact_rows_have_one_value_and_plain_rows_have_not(tmp_path: Path) -> None:
    """Bytes, not tolerance: alone or in company, in one step or two, the exact profile gives the same rows. The
    plain operators show that the comparison can fail."""
    folder = save(make_reference("llama", rope_parameters=LLAMA3_ROPE), tmp_path)
    assert bits_that_differ(folder, CpuOperators(threads=2)) == 0
    assert bits_that_differ(folder, plain_operators()) > 0


def bits_that_differ(folder: Path, operators: Operators) -> int:
    """How many logits differ in any bit between a batch of all prompts and other ways to run the longest."""
    model = load(folder, operators)
    texts = prompts(model.spec.vocabulary, (*PROMPT_LENGTHS, LONG_LENGTH))
    together = run(model, operators, texts)[-1].view(torch.int32)
    others = [run(model, operators, texts[-1:], cut)[0].view(torch.int32) for cut in (0, 1, 63, 257, 299)]
    return sum(int((other != together).sum()) for other in others)


def test_a_wrong_position_or_neighbour_shows(operators: Operators, tmp_path: Path) -> None:
    """The comparison can fail: an error of one position or one swapped token leaves the bound."""
    reference = make_reference("qwen3", head_dim=32)
    model = load(save(reference, tmp_path), operators)
    prompt = prompts(model.spec.vocabulary)[2]
    right = run(model, operators, [prompt])[0]
    scale = right[-1].abs().max()
    swapped = [prompt[1], prompt[0], *prompt[2:]]
    assert (run(model, operators, [swapped])[0][-1] - right[-1]).abs().max() > 100 * LARGEST_ERROR * scale
