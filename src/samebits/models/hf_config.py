"""Reading a Hugging Face config.json: typed fields, and refusal of what Samebits does not run.

Every error names the file and the field. Defaults are those of the family in `transformers`, and a field that
would change the computation in a way that the decoder does not have is refused, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from samebits.errors import ConfigError, ModelFileError, UnsupportedModelError
from samebits.models.spec import ModelSpec, RopeSpec
from samebits.numerics.operators import HeadLayout

DTYPES = ("bfloat16", "float16", "float32")
LLAMA3_FIELDS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_FIELDS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *LLAMA3_FIELDS)

NEUTRAL: dict[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "attn_logit_softcapping": (None, 0),
    "final_logit_softcapping": (None, 0),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "moe_intermediate_size": (None, 0),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "logits_scaling": (None, 1),
    "attention_chunk_size": (None,),
    "no_rope_layers": (None, []),
    "query_pre_attn_scalar": (None,),
    "vision_config": (None,),
    "is_encoder_decoder": (None, False),
    "use_mrope": (None, False),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "rope_interleaved": (None, False),
    "dual_chunk_attention_config": (None,),
}
"""Fields that change what the model computes, with the values that leave it a dense decoder."""


@dataclass(frozen=True)
class ConfigReader:
    """Typed access to the fields of a config.json. `source` is the file's name in messages."""

    values: Mapping[str, object]
    source: str

    def fail(self, field: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.source}: '{field}' {problem}")

    def refuse(self, field: str, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.source}: '{field}' {problem}")

    def integer(self, field: str, default: int | None = None) -> int:
        """A positive integer. Without a default the field must be there."""
        value = self.values.get(field)
        if value is None:
            value = default
        if value is None:
            raise self.fail(field, "is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.fail(field, f"must be a positive integer, got {value!r}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        """A positive finite number. Without a default the field must be there."""
        value = self.values.get(field)
        if value is None:
            value = default
        if value is None:
            raise self.fail(field, "is missing")
        number = self.as_float(field, value)
        if not math.isfinite(number) or number <= 0:
            raise self.fail(field, f"must be positive and finite, got {value!r}")
        return number

    def as_float(self, field: str, value: object) -> float:
        """A value of `field` as a float."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(field, f"must be a number, got {value!r}")
        try:
            return float(value)
        except OverflowError as error:
            raise self.fail(field, f"is too large: {_short(value)}") from error

    def boolean(self, field: str, default: bool) -> bool:
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(field, f"must be true or false, got {value!r}")
        return value

    def mapping(self, field: str) -> Mapping[str, object] | None:
        value = self.values.get(field)
        if value is not None and not isinstance(value, dict):
            raise self.fail(field, f"must be an object, got {value!r}")
        return value


def check_dense_decoder(config: ConfigReader) -> None:
    """Refuse every field that makes the model something else than a dense pre-norm SwiGLU decoder."""
    for field, neutral in NEUTRAL.items():
        value = config.values.get(field)
        if not any(value is allowed or value == allowed for allowed in neutral):
            raise config.refuse(field, f"= {_short(value)} is not supported")
    activation = config.values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise config.refuse("hidden_act", f"= {activation!r} is not supported; only 'silu' is")


def dense_spec(
    config: ConfigReader,
    context_length: int,
    family: str,
    heads: HeadLayout,
    windowed_layers: int = 0,
    default_window: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    llama3_rope: bool = False,
) -> ModelSpec:
    """The spec of a dense decoder: the fields that all families share, and what the family says of the rest.

    `context_length` is what the user asked for (0: the model's own limit); `windowed_layers` is how many layers
    the family gives `sliding_window`, and `default_window` is the window of a config that does not name it. The
    spec's dtype is empty when the config names none.
    """
    check_dense_decoder(config)
    check_full_attention(config, context_limit(config, context_length), windowed_layers, default_window)
    return ModelSpec(
        family=family,
        vocabulary=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        intermediate=config.integer("intermediate_size"),
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        rope=read_rope(config, heads.head_dim, llama3_rope),
        norm_eps=config.number("rms_norm_eps"),
        max_positions=config.integer("max_position_embeddings"),
        tied_embeddings=config.boolean("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        dtype=read_dtype(config),
        eos_token_ids=read_token_ids(config, "eos_token_id"),
        raw_config=dict(config.values),
    )


def read_dtype(config: ConfigReader) -> str:
    """Storage dtype that the config names (`dtype`, formerly `torch_dtype`); empty when it names none."""
    for field in ("dtype", "torch_dtype"):
        value = config.values.get(field)
        if value in (None, "auto"):
            continue
        name = str(value).removeprefix("torch.")
        if name not in DTYPES:
            raise config.refuse(field, f"= {value!r} is not supported; only {', '.join(DTYPES)} are")
        return name
    return ""


def read_token_ids(config: ConfigReader, field: str) -> tuple[int, ...]:
    """A token id or a list of them, in ascending order without repeats; empty when the field is blank."""
    value = config.values.get(field)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0 for entry in ids):
        raise config.fail(field, f"must be a token id or a list of token ids, got {value!r}")
    return tuple(sorted(set(ids)))


def read_heads(
    config: ConfigReader, default_head_dim: int | None = None, default_kv_heads: bool = False
) -> HeadLayout:
    """Attention heads. A blank head_dim is `default_head_dim`, else hidden / heads; a blank
    num_key_value_heads means as many as query heads where the family allows it."""
    query_heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", query_heads if default_kv_heads else None)
    if query_heads % kv_heads:
        raise config.fail(
            "num_key_value_heads", f"= {kv_heads} does not divide num_attention_heads = {query_heads}"
        )
    if config.values.get("head_dim") is None and default_head_dim is None:
        hidden = config.integer("hidden_size")
        if hidden % query_heads:
            raise config.fail(
                "head_dim", f"is missing and hidden_size = {hidden} is no multiple of {query_heads} heads"
            )
        default_head_dim = hidden // query_heads
    head_dim = config.integer("head_dim", default_head_dim)
    if head_dim % 2:
        raise config.refuse("head_dim", f"= {head_dim} is odd, so it cannot be rotated")
    return HeadLayout(query_heads, kv_heads, head_dim)


def read_rope(config: ConfigReader, head_dim: int, llama3: bool = False) -> RopeSpec:
    """Rotary embedding, in the old spelling (`rope_theta`, `rope_scaling`) or the new (`rope_parameters`)."""
    field = "rope_parameters" if config.values.get("rope_parameters") is not None else "rope_scaling"
    older = config.values.get("rope_scaling")
    if older is not None and older != config.values[field]:
        raise config.fail("rope_scaling", "contradicts 'rope_parameters'; keep one of the two")
    parameters = ConfigReader(config.mapping(field) or {}, f"{config.source}: {field}")
    kind = parameters.values.get("rope_type") or parameters.values.get("type") or "default"
    if kind not in ("default", "llama3") or (kind == "llama3" and not llama3):
        raise parameters.refuse("rope_type", f"= {kind!r} is not supported for this architecture")
    unknown = sorted(set(parameters.values) - set(ROPE_FIELDS))
    if unknown:
        raise parameters.refuse(unknown[0], "is not supported")
    for reader in (config, parameters):
        if reader.number("partial_rotary_factor", 1.0) != 1.0:
            raise reader.refuse("partial_rotary_factor", "other than 1 (partial rotation) is not supported")
    theta = parameters.number("rope_theta", config.number("rope_theta", 10000.0))
    scaling = _llama3_scaling(config, parameters) if kind == "llama3" else ()
    return RopeSpec(theta=theta, rotary_dim=head_dim, kind=str(kind), scaling=scaling)


def _llama3_scaling(config: ConfigReader, parameters: ConfigReader) -> tuple[tuple[str, float], ...]:
    factor = parameters.number("factor")
    low = parameters.number("low_freq_factor")
    high = parameters.number("high_freq_factor")
    # transformers lets a value beside the RoPE parameters win, and falls back on the maximum position.
    original = config.integer(
        "original_max_position_embeddings",
        parameters.integer("original_max_position_embeddings", config.integer("max_position_embeddings")),
    )
    if factor < 1.0:
        raise parameters.fail("factor", f"must be at least 1, got {factor:g}")
    if high <= low:
        raise parameters.fail("high_freq_factor", f"must exceed low_freq_factor, got {high:g} and {low:g}")
    return tuple(zip(LLAMA3_FIELDS, (factor, low, high, float(original)), strict=True))


def context_limit(config: ConfigReader, asked: int) -> int:
    """Longest request in tokens: `asked`, or the model's own limit when that is 0."""
    limit = config.integer("max_position_embeddings")
    if asked < 0:
        raise ConfigError(f"--context-length must not be negative, got {asked}")
    if asked > limit:
        raise config.fail(
            "max_position_embeddings", f"= {limit} is less than the context length {asked} that was asked for"
        )
    return asked or limit


def check_full_attention(
    config: ConfigReader, context_length: int, windowed_layers: int, default_window: int | None
) -> None:
    """Refuse a sliding window that would be used: some layer has it and it is shorter than the context.

    `windowed_layers` is how many layers the family's own rule gives the window; `layer_types`, where present,
    says it instead. A config without `sliding_window` has the family's `default_window`; null means none.
    """
    window_field = "sliding_window"
    kinds = config.values.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != config.integer("num_hidden_layers"):
            raise config.fail("layer_types", "must list one kind for each of the num_hidden_layers layers")
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise config.refuse("layer_types", f"holds {kind!r}, which is not supported")
        windowed_layers = kinds.count("sliding_attention")
    if not windowed_layers or config.values.get(window_field, default_window) is None:
        return
    window = config.integer(window_field, default_window)
    if window < context_length:
        raise config.refuse(
            window_field,
            f"= {window} would be used by {windowed_layers} layers and is not supported; a context length "
            f"of at most {window} (--context-length {window}) does without it",
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
