"""The bundled checkpoints are what the model card says, and the problems' split does not leak."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer
from training.arithmetic import Problem, conversation, final_number, problems
from training.model import SHAPES
from training.prepare import Encoder
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src/samebits/models/bundled"
DATA = ROOT / "src/samebits/data"
RESULTS = ROOT / "results/bundled_model"
LIMITS = {"target": 25_000_000, "draft": 4_000_000}
SHARD = 15 * 1024 * 1024
MODELS = sorted(LIMITS)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED / "target")


@pytest.mark.parametrize("model", MODELS)
def test_folder_and_shards_keep_their_limits(model: str) -> None:
    files = [path for path in (BUNDLED / model).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMITS[model]
    assert all(path.stat().st_size <= SHARD for path in files)


@pytest.mark.parametrize("model", MODELS)
def test_config_is_what_was_trained(model: str) -> None:
    config = read(BUNDLED / model / "config.json")
    assert config == SHAPES[model].config()
    assert (config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]) == (64, 8, 4)
    assert config["max_position_embeddings"] == 8192 and config["tie_word_embeddings"]
    assert not any(config[width] % 128 for width in ("hidden_size", "intermediate_size", "vocab_size"))


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_bfloat16_and_all_there(model: str) -> None:
    shape, folder, found = SHAPES[model], BUNDLED / model, {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                piece = tensors.get_slice(name)
                assert piece.get_dtype() == "BF16", name
                found[name] = (piece.get_shape(), shard.name)
    assert len(found) == 2 + 11 * shape.num_hidden_layers
    assert found["model.embed_tokens.weight"][0] == [shape.vocab_size, shape.hidden_size]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        assert read(index)["weight_map"] == {name: place for name, (_, place) in found.items()}
    else:
        assert {place for _, place in found.values()} == {"model.safetensors"}


def test_both_models_share_the_tokenizer_and_its_end_tokens(tokenizer: Any) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (BUNDLED / "target" / name).read_bytes() == (BUNDLED / "draft" / name).read_bytes()
    assert len(tokenizer) == 4096
    ends = read(BUNDLED / "target/generation_config.json")["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]
    assert read(BUNDLED / "target/config.json")["eos_token_id"] == ends[0] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x ** 2\n\n\n",
        "naïve – 数学 🙂 e\u0301 \u200b",
        "  indented\r\n",
        "\x00\x7f\ufffd",
        "",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_each_digit_is_its_own_token(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("40961234").input_ids) == list("40961234")


def test_chat_template_renders_roles_tools_and_the_prompt_for_an_answer(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n4"},
        {"role": "tool", "content": "4"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    called = [
        messages[1],
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]},
    ]
    text = tokenizer.apply_chat_template(called, tools=[tool], tokenize=False)
    assert text.startswith("<|im_start|>system\n# Tools")
    assert text.endswith('<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>\n')


def test_training_sees_chats_as_the_template_renders_them(tokenizer: Any) -> None:
    encoder = Encoder(Tokenizer.from_file(str(BUNDLED / "target/tokenizer.json")))
    rng, source = random.Random(3), problems(3, held_out=False)
    chats = [conversation(source, rng) for _ in range(60)]
    for chat, (ids, weights) in zip(chats, encoder.chats(chats), strict=True):
        rendered = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False)).input_ids
        assert ids == [*rendered, encoder.end] and len(weights) == len(ids)


def take(count: int, seed: int, *, held_out: bool) -> list[Problem]:
    return list(itertools.islice(problems(seed, held_out=held_out), count))


def test_problems_follow_from_the_seed_and_end_in_their_result() -> None:
    first = take(50, 4, held_out=False)
    assert first == take(50, 4, held_out=False) != take(50, 5, held_out=False)
    assert all(final_number(problem.answer) == problem.result > 0 for problem in first)


def test_unseen_problems_are_disjoint_from_those_trained_on() -> None:
    seen = {problem.key for problem in take(20_000, 2000, held_out=False)}
    unseen = [json.loads(line) for line in (DATA / "arithmetic_test.jsonl").open(encoding="utf-8")]
    assert len({row["key"] for row in unseen}) == len(unseen) == 500
    assert not seen & {row["key"] for row in unseen}
    assert all(Problem(row["key"], "", "", 0, 0).held_out for row in unseen)
    assert not any(Problem(key, "", "", 0, 0).held_out for key in seen)


def test_long_prompt_is_long(tokenizer: Any) -> None:
    text = (DATA / "long_prompt.txt").read_text(encoding="utf-8")
    assert len(text) >= 40_000 and len(tokenizer(text).input_ids) > 8192


def test_the_card_tells_the_measured_figures() -> None:
    card = (BUNDLED / "MODEL_CARD.md").read_text(encoding="utf-8")
    measured = read(RESULTS / "evaluation.json")
    for model in MODELS:
        figures = measured[model]
        assert f"{figures['unseen_problems']['accuracy']:.1%}".replace("%", " %") in card
        for source in figures["held_out_loss"].values():
            assert f"{source['nats_a_token']:.3f}" in card
        training = read(RESULTS / f"{model}_training.json")
        assert f"{training['parameters']:,}" in card and f"{training['steps']:,} steps" in card
    for share in measured["agreement"].values():
        assert f"{share:.1%}".replace("%", " %") in card
