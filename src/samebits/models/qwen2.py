"""Qwen2 and Qwen2.5, dense: biases of queries, keys and values; a sliding window that only `use_sliding_window`
brings to life, in the layers from `max_window_layers` on."""

from __future__ import annotations

from samebits.models.family import Family, WeightNames
from samebits.models.hf_config import ConfigReader, dense_spec, read_heads
from samebits.models.spec import ModelSpec

DEFAULT_MAX_WINDOW_LAYERS = 28
DEFAULT_WINDOW = 4096


def windowed_layers(config: ConfigReader) -> int:
    """How many layers the Qwen rule gives the sliding window."""
    if not config.boolean("use_sliding_window", False):
        return 0
    first = config.values.get("max_window_layers", DEFAULT_MAX_WINDOW_LAYERS)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise config.fail("max_window_layers", f"must be a number of layers, got {first!r}")
    return max(config.integer("num_hidden_layers") - first, 0)


def read_spec(config: ConfigReader, context_length: int) -> ModelSpec:
    """config.json -> spec."""
    return dense_spec(
        config,
        context_length,
        family="qwen2",
        heads=read_heads(config),
        windowed_layers=windowed_layers(config),
        default_window=DEFAULT_WINDOW,
        qkv_bias=True,
    )


FAMILY = Family("qwen2", ("Qwen2ForCausalLM",), read_spec, WeightNames())
