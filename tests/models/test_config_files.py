"""config.json: both spellings of RoPE, sliding windows, and everything that is refused, naming the field."""

from __future__ import annotations

from typing import Any

import pytest

from samebits.errors import ConfigError, ModelFileError, UnsupportedModelError
from samebits.models.hf_config import ConfigReader
from samebits.models.registry import FAMILY_MODULES, family_of
from samebits.models.spec import ModelSpec

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}


def read(family: str, context_length: int = 0, **changes: Any) -> ModelSpec:
    values = {**COMMON, "architectures": [ARCHITECTURES[family]], **changes}
    config = ConfigReader(values, "config.json")
    return family_of(config).read_spec(config, context_length)


def test_every_registered_family_reads_its_architectures() -> None:
    for architecture in FAMILY_MODULES:
        config = ConfigReader({**COMMON, "architectures": [architecture]}, "config.json")
        family = family_of(config)
        assert architecture in family.architectures
        assert family.read_spec(config, 0).family == family.name


def test_old_and_new_rope_spelling_agree() -> None:
    scaling = {**LLAMA3, "original_max_position_embeddings": 256}
    old = read("llama", rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    older = read("llama", rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = read("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert old.rope == older.rope == new.rope
    assert old.rope.kind == "llama3"
    assert dict(old.rope.scaling) == scaling


def test_rope_defaults() -> None:
    assert read("llama").rope.theta == 10000.0
    assert read("qwen3", rope_scaling=None, rope_theta=1_000_000).rope.theta == 1e6
    assert read("qwen3", rope_parameters={"rope_type": "default", "rope_theta": 7.0}).rope.theta == 7.0
    assert read("llama", rope_scaling={"type": "default"}).rope.kind == "default"
    without = read("llama", rope_scaling={"rope_type": "llama3", **LLAMA3})
    assert dict(without.rope.scaling)["original_max_position_embeddings"] == 1024


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"type": "default", "mrope_section": [8, 8]}}, "mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"num_experts": 8}, "num_experts"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"residual_multiplier": 0.2}, "residual_multiplier"),
        ({"dtype": "float8_e4m3fn"}, "dtype"),
        ({"head_dim": 31}, "head_dim"),
        ({"layer_types": ["full_attention"] * 3 + ["linear_attention"]}, "layer_types"),
    ],
)
def test_unsupported_fields(changes: dict[str, Any], field: str) -> None:
    for family in ARCHITECTURES:
        with pytest.raises(UnsupportedModelError, match=f"config.json.*'{field}'"):
            read(family, **changes)


def test_llama3_rope_is_llamas_own() -> None:
    with pytest.raises(UnsupportedModelError, match="rope_type"):
        read("qwen3", rope_scaling={"rope_type": "llama3", **LLAMA3})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "128"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"hidden_size": 130, "num_attention_heads": 4}, "head_dim"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [2, -1]}, "eos_token_id"),
        ({"rope_scaling": 8.0}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
        ({"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 3.0}}, "rope_scaling"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_wrong_fields(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelFileError, match=f"config.json.*'{field}'"):
        read("llama", **changes)


def test_head_dim() -> None:
    assert read("llama").heads.head_dim == 32
    assert read("qwen2").heads.head_dim == 32
    assert read("qwen3").heads.head_dim == 128, "the default of transformers"
    assert read("mistral", head_dim=48).heads.head_dim == 48


def test_kv_heads_of_old_llama_configs() -> None:
    assert read("llama", num_key_value_heads=None).heads.kv_heads == 4
    with pytest.raises(ModelFileError, match="num_key_value_heads"):
        read("mistral", num_key_value_heads=None)


def test_window_that_would_be_used_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'sliding_window' = 512 .*--context-length 512"):
        read("mistral", sliding_window=512)
    for family in ("qwen2", "qwen3"):
        with pytest.raises(UnsupportedModelError, match="sliding_window"):
            read(family, sliding_window=512, use_sliding_window=True, max_window_layers=3)
        with pytest.raises(UnsupportedModelError, match="sliding_window"):
            read(
                family,
                sliding_window=512,
                layer_types=["full_attention"] * 3 + ["sliding_attention"],
            )


def test_a_window_that_the_config_does_not_name_is_the_familys() -> None:
    """A config that leaves `sliding_window` out means 4,096 in transformers, and null means none."""
    with pytest.raises(UnsupportedModelError, match=r"'sliding_window' = 4096 .*--context-length 4096"):
        read("mistral", max_position_embeddings=8192)
    for family in ("qwen2", "qwen3"):
        with pytest.raises(UnsupportedModelError, match="'sliding_window' = 4096"):
            read(family, max_position_embeddings=8192, use_sliding_window=True, max_window_layers=3)
        read(family, max_position_embeddings=8192)
    read("mistral", max_position_embeddings=8192, sliding_window=None)
    read("mistral", max_position_embeddings=8192, context_length=4096)
    read("llama", max_position_embeddings=8192)


def test_window_that_would_not_be_used_is_accepted() -> None:
    read("mistral", sliding_window=None)
    read("mistral", sliding_window=1024)
    read("mistral", sliding_window=512, context_length=512)
    read("qwen2", sliding_window=512, use_sliding_window=False, max_window_layers=0)
    read("qwen2", sliding_window=512)
    read("qwen2", sliding_window=512, use_sliding_window=True, max_window_layers=4)
    read("qwen3", sliding_window=512, use_sliding_window=True, layer_types=["full_attention"] * 4)
    read("qwen3", sliding_window=None, use_sliding_window=True, max_window_layers=0)
    read("llama", sliding_window=512)


def test_context_length_beyond_the_models_limit() -> None:
    with pytest.raises(ModelFileError, match=r"max_position_embeddings.*1025"):
        read("qwen3", context_length=1025)
    with pytest.raises(ConfigError, match="--context-length must not be negative"):
        read("qwen3", context_length=-1)


def test_dtype_and_eos() -> None:
    assert read("qwen3", torch_dtype="bfloat16").dtype == "bfloat16"
    assert read("qwen3", dtype="float16").dtype == "float16"
    assert read("qwen3").dtype == ""
    assert read("llama", eos_token_id=[9, 3, 9]).eos_token_ids == (3, 9)
    assert read("llama", eos_token_id=None).eos_token_ids == ()
