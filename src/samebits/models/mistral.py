"""Mistral, dense: no biases; a `sliding_window` that is not null is of every layer, 4,096 where it is not named."""

from __future__ import annotations

from samebits.models.family import Family, WeightNames
from samebits.models.hf_config import ConfigReader, dense_spec, read_heads
from samebits.models.spec import ModelSpec

DEFAULT_WINDOW = 4096


def read_spec(config: ConfigReader, context_length: int) -> ModelSpec:
    """config.json -> spec."""
    return dense_spec(
        config,
        context_length,
        family="mistral",
        heads=read_heads(config),
        windowed_layers=config.integer("num_hidden_layers"),
        default_window=DEFAULT_WINDOW,
    )


FAMILY = Family("mistral", ("MistralForCausalLM",), read_spec, WeightNames())
