"""Qwen3, dense: queries and keys normed per head, no biases unless `attention_bias` says so."""

from __future__ import annotations

from samebits.models.family import Family, WeightNames
from samebits.models.hf_config import ConfigReader, dense_spec, read_heads
from samebits.models.qwen2 import DEFAULT_WINDOW, windowed_layers
from samebits.models.spec import ModelSpec

DEFAULT_HEAD_DIM = 128


def read_spec(config: ConfigReader, context_length: int) -> ModelSpec:
    """config.json -> spec. A blank head_dim is 128; `attention_bias` is of all four projections."""
    bias = config.boolean("attention_bias", False)
    return dense_spec(
        config,
        context_length,
        family="qwen3",
        heads=read_heads(config, DEFAULT_HEAD_DIM),
        windowed_layers=windowed_layers(config),
        default_window=DEFAULT_WINDOW,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )


FAMILY = Family("qwen3", ("Qwen3ForCausalLM",), read_spec, WeightNames())
