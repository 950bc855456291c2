"""Dummy weights: one function of seed, name and place; sharp attention, outliers, and text that does not loop."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from samebits.config import ModelConfig
from samebits.models import dummy
from samebits.models.checkpoint import whole
from samebits.models.decoder import forward, logits
from samebits.models.dummy import Part, Recipe, dummy_source, part_taken
from samebits.models.family import WeightNames
from samebits.models.load import LoadedModel, load_model, read_model_files
from samebits.models.locate import shape_names
from samebits.models.shards import ModelShard
from samebits.models.spec import ModelSpec
from samebits.models.weights import Cut, expected_shapes
from samebits.numerics.operators import HeadLayout

from .checkpoints import PAGE_TOKENS, plain_operators, ragged_batch

NAMES = WeightNames()
TINY_DIGEST = "74069dcdaf39b3a030512705bc7f509f92374d2b93fea48861d24937d8b2c5eb"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def tiny() -> ModelConfig:
    return ModelConfig(model="tiny", load_format="dummy", context_length=1024)


def tiny_spec() -> ModelSpec:
    return read_model_files(tiny()).spec


def digest(spec: ModelSpec, seed: int) -> str:
    """Digest of every tensor's bytes, in order of name."""
    total = hashlib.sha256()
    source = dummy_source(spec, NAMES, seed)
    for name in sorted(expected_shapes(spec, NAMES)):
        total.update(source.tensor(name).contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def test_golden_digest() -> None:
    """A change here is a change of GENERATOR_VERSION, and of every golden digest made with dummy weights."""
    assert dummy.GENERATOR_VERSION == 1
    assert digest(tiny_spec(), 0) == TINY_DIGEST


def test_generator_is_splitmix64() -> None:
    """The first outputs of the published generator for the seed 0."""
    mixed = dummy._mix(0, np.arange(3, dtype=np.uint64))
    assert [hex(int(word)) for word in mixed] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_seed_name_and_place_all_matter() -> None:
    spec = tiny_spec()
    first, second = dummy_source(spec, NAMES, 0), dummy_source(spec, NAMES, 1)
    assert not torch.equal(first.tensor(QUERY), second.tensor(QUERY))
    other = QUERY.replace("q_proj", "k_proj")
    assert not torch.equal(first.tensor(QUERY)[: first.tensor(other).shape[0]], first.tensor(other))
    assert not torch.equal(first.tensor(QUERY), first.tensor(QUERY.replace("layers.1", "layers.2")))
    assert digest(spec, 0) != digest(spec, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 1001])
def test_pieces_do_not_change_a_weight(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dummy._tensor("a", (count,), Recipe(0.5), 3).view(torch.int32)
    longer = dummy._tensor("a", (count + 7,), Recipe(0.5), 3).view(torch.int32)
    assert torch.equal(longer[:count], whole), "weight i does not depend on the tensor's length"
    monkeypatch.setattr(dummy, "CHUNK_WEIGHTS", 6)
    assert torch.equal(dummy._tensor("a", (count,), Recipe(0.5), 3).view(torch.int32), whole)


def test_global_random_state_and_threads_do_not_matter() -> None:
    spec = tiny_spec()
    before = digest(spec, 4)
    threads = torch.get_num_threads()
    try:
        torch.manual_seed(1)
        np.random.seed(1)
        torch.set_num_threads(1)
        assert digest(spec, 4) == before
    finally:
        torch.set_num_threads(threads)


def test_distribution() -> None:
    values = dummy._tensor("a", (1_000_000,), Recipe(2.0), 0).double()
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 2.0) < 0.01
    assert len(values.unique()) > 50_000
    neighbours = (values[:-1] * values[1:]).mean() / 4.0
    assert abs(neighbours) < 0.005, "neighbouring weights are uncorrelated"


def test_outlier_channels() -> None:
    spec = tiny_spec()
    source = dummy_source(spec, NAMES, 0)
    norms = torch.cat(
        [source.tensor(f"model.layers.{layer}.input_layernorm.weight").float() for layer in range(3)]
    )
    outliers = int((norms > 4.0).sum())
    assert 1 <= outliers <= norms.numel() // 16
    ordinary = norms[norms <= 4.0]
    assert float(ordinary.min()) > 0.7 and float(ordinary.max()) < 1.3


def test_every_name_has_the_recipe_of_its_part() -> None:
    spec = replace(tiny_spec(), qkv_bias=True, output_bias=True, mlp_bias=True, tied_embeddings=False)
    by_part = {
        "model.layers.0.self_attn.q_norm.weight": dummy.SCORE_GAIN,
        "model.layers.0.input_layernorm.weight": 1.0,
        "model.layers.2.post_attention_layernorm.weight": 1.0,
        "model.norm.weight": 1.0,
        QUERY: 0.0,
        "model.layers.0.mlp.down_proj.bias": 0.0,
    }
    for name, mean in by_part.items():
        assert dummy.recipe_for(spec, NAMES, name).mean == mean
    gains = [
        dummy.recipe_for(spec, NAMES, f"model.layers.0.self_attn.{part}_proj.weight").deviation
        for part in "qkv"
    ]
    assert gains[0] == gains[1] == dummy.SCORE_GAIN * gains[2]
    for name in expected_shapes(spec, NAMES):
        assert (dummy.recipe_for(spec, NAMES, name).deviation == dummy.BIAS_DEVIATION) == name.endswith(
            ".bias"
        )


def greedy(model: LoadedModel, prompt: list[int], count: int) -> list[int]:
    operators = plain_operators()
    pages = (len(prompt) + count) // PAGE_TOKENS + 1
    kv = operators.allocate_kv(model.spec.layers, pages, PAGE_TOKENS, model.spec.heads)
    fed, position, output = prompt, 0, []
    for _ in range(count):
        batch = ragged_batch([(position, fed)], pages)
        hidden = forward(model.spec, model.weights, operators, batch, kv, model.rope)
        position += len(fed)
        fed = [int(logits(model.spec, model.weights, operators, hidden[-1:]).argmax())]
        output += fed
    return output


def test_greedy_text_does_not_loop_and_depends_on_the_whole_prompt() -> None:
    model = load_model(tiny(), plain_operators())
    prompt = list(range(100, 140))
    text = greedy(model, prompt, 60)
    assert len(set(text)) > 40
    for place in (0, 17, 39):
        changed = [*prompt[:place], prompt[place] + 1, *prompt[place + 1 :]]
        assert greedy(model, changed, 8) != text[:8]
    swapped = [prompt[1], prompt[0], *prompt[2:]]
    assert greedy(model, swapped, 8) != text[:8]


def test_shapes_of_the_package() -> None:
    assert {"tiny", "qwen3-0.5b-shaped", "qwen3-8b-shaped", "llama-3.1-8b-shaped"} <= set(shape_names())
    for name in shape_names():
        spec = read_model_files(ModelConfig(model=name, load_format="dummy")).spec
        parameters = sum(int(np.prod(shape)) for shape in expected_shapes(spec, NAMES).values())
        if name == "qwen3-0.5b-shaped":
            assert 0.45e9 < parameters < 0.6e9


def test_dtype_of_dummy_weights() -> None:
    for dtype in ("bfloat16", "float16", "float32"):
        model = load_model(replace(tiny(), dtype=dtype), plain_operators())
        assert model.weights.embedding.dtype == getattr(torch, dtype)
        assert model.spec.dtype == dtype


@pytest.mark.parametrize("shape", [(7,), (5, 3), (64, 48), (130, 2, 17)])
@pytest.mark.parametrize("recipe", [Recipe(0.02), Recipe(0.1, mean=1.0, outlier_gain=6.0)])
def test_weights_made_on_a_device_are_those_of_the_host(
    shape: tuple[int, ...], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The torch code that runs on a GPU, here on the CPU; cut into chunks of an odd number of weights, too."""
    host = dummy._tensor("a.weight", shape, recipe, 3, torch.bfloat16)
    for chunk in (1 << 26, 51):
        monkeypatch.setattr(dummy, "DEVICE_CHUNK_WEIGHTS", chunk)
        made = dummy.device_tensor("a.weight", shape, recipe, 3, torch.bfloat16, torch.device("cpu"))
        assert made.shape == host.shape
        assert torch.equal(made.view(torch.int16), host.view(torch.int16))
    other = dummy.device_tensor("a.weight", shape, recipe, 4, torch.bfloat16, torch.device("cpu"))
    assert not torch.equal(other.view(torch.int16), host.view(torch.int16))


SHARD = ModelShard(1, 4)


@pytest.mark.parametrize(
    ("shape", "take", "part"),
    [
        ((64, 48), whole, None),
        ((64, 48), SHARD.rows, Part(16, 16, 0, 48)),
        ((64, 51), SHARD.rows, Part(16, 16, 0, 51)),
        ((64, 48), SHARD.inputs, Part(0, 64, 12, 12)),
        ((64, 52), SHARD.inputs, None),
        ((64, 48), lambda tensor: SHARD.kv_rows(tensor, HeadLayout(4, 2, 32)), Part(0, 32, 0, 48)),
        ((64, 48), SHARD.vocabulary, None),
        ((64,), SHARD.rows, None),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 26, 101])
def test_a_part_made_on_a_device_is_cut_from_the_whole(
    shape: tuple[int, ...], take: Cut, part: Part | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """52 columns over four ranks are 13 each, which begin in the middle of a pair."""
    monkeypatch.setattr(dummy, "DEVICE_CHUNK_WEIGHTS", chunk)
    assert part_taken(shape, take) == part
    recipe = Recipe(0.1, mean=1.0, outlier_gain=6.0)
    expected = take(dummy._tensor("a.weight", shape, recipe, 3, torch.bfloat16)).contiguous()
    made = dummy.device_tensor("a.weight", shape, recipe, 3, torch.bfloat16, torch.device("cpu"), part)
    made = take(made).contiguous() if part is None else made
    assert torch.equal(made.view(torch.int16), expected.view(torch.int16))
    if part is not None:
        moved = replace(part, row=part.row + 1, rows=part.rows - 1)
        other = dummy.device_tensor("a.weight", shape, recipe, 3, torch.bfloat16, torch.device("cpu"), moved)
        assert not torch.equal(other.view(torch.int16), made[:-1].view(torch.int16))


@pytest.mark.gpu
def test_weights_made_on_the_gpu_are_those_of_the_host() -> None:
    recipe = Recipe(0.1, mean=1.0, outlier_gain=6.0)
    host = dummy._tensor("a.weight", (1000, 333), recipe, 3, torch.bfloat16)
    made = dummy.device_tensor("a.weight", (1000, 333), recipe, 3, torch.bfloat16, torch.device("cuda")).cpu()
    assert torch.equal(made.view(torch.int16), host.view(torch.int16))
