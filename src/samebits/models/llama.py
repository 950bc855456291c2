"""Llama 3.x (and what shares its architecture): its own RoPE scaling, biases where the config asks for them."""

from __future__ import annotations

from samebits.models.family import Family, WeightNames
from samebits.models.hf_config import ConfigReader, dense_spec, read_heads
from samebits.models.spec import ModelSpec


def read_spec(config: ConfigReader, context_length: int) -> ModelSpec:
    """config.json -> spec. `attention_bias` is of all four projections, `mlp_bias` of all three."""
    bias = config.boolean("attention_bias", False)
    return dense_spec(
        config,
        context_length,
        family="llama",
        heads=read_heads(config, default_kv_heads=True),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.boolean("mlp_bias", False),
        llama3_rope=True,
    )


FAMILY = Family("llama", ("LlamaForCausalLM",), read_spec, WeightNames())
