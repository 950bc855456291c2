"""Mistral, dense: no biases; a `sliding_window` that is not null is of every layer."""

from __future__ import annotations

from samebits.models.family import Family, WeightNames
from samebits.models.hf_config import ConfigReader, dense_spec, read_heads
from samebits.models.spec import ModelSpec


def read_spec(config: ConfigReader, context_length: int) -> ModelSpec:
    """config.json -> spec."""
    return dense_spec(
        config,
        context_length,
        family="mistral",
        heads=read_heads(config),
        windowed_layers=config.integer("num_hidden_layers"),
    )


FAMILY = Family("mistral", ("MistralForCausalLM",), read_spec, WeightNames())
