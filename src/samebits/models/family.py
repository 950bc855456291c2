"""What a model family is: a reader of its config.json and the names of its tensors in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from samebits.models.hf_config import ConfigReader
from samebits.models.spec import ModelSpec


@dataclass(frozen=True)
class WeightNames:
    """Checkpoint names of the weights; `{layer}` stands for the layer's number. A linear's name lacks the
    `.weight` or `.bias` at its end."""

    embedding: str = "model.embed_tokens.weight"
    output: str = "lm_head"
    final_norm: str = "model.norm.weight"
    attention_norm: str = "model.layers.{layer}.input_layernorm.weight"
    query: str = "model.layers.{layer}.self_attn.q_proj"
    key: str = "model.layers.{layer}.self_attn.k_proj"
    value: str = "model.layers.{layer}.self_attn.v_proj"
    attention_output: str = "model.layers.{layer}.self_attn.o_proj"
    query_norm: str = "model.layers.{layer}.self_attn.q_norm.weight"
    key_norm: str = "model.layers.{layer}.self_attn.k_norm.weight"
    mlp_norm: str = "model.layers.{layer}.post_attention_layernorm.weight"
    gate: str = "model.layers.{layer}.mlp.gate_proj"
    up: str = "model.layers.{layer}.mlp.up_proj"
    down: str = "model.layers.{layer}.mlp.down_proj"
    ignored: tuple[str, ...] = (".rotary_emb.inv_freq",)
    """endings of names that old checkpoints carry and nobody reads: tables made anew from the config"""


@dataclass(frozen=True)
class Family:
    """One family. `read_spec(config, context_length)` raises `ModelFileError` naming the field it refuses."""

    name: str
    architectures: tuple[str, ...]
    read_spec: Callable[[ConfigReader, int], ModelSpec]
    names: WeightNames
