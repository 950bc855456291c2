"""What a decoder-only model is, as data: every family's config.json becomes one of these."""

from __future__ import annotations

from dataclasses import dataclass, field

from samebits.numerics.operators import HeadLayout


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding. `scaling` holds the family's parameters (Llama 3's, for one), already checked."""

    theta: float
    rotary_dim: int
    kind: str = "default"
    """`default` or `llama3`"""
    scaling: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """A dense decoder. Widths are the whole model's, before any tensor-parallel cut."""

    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: HeadLayout
    rope: RopeSpec
    norm_eps: float
    max_positions: int
    tied_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str = "bfloat16"
    """Storage dtype of the weights: bfloat16, float16 or float32"""
    eos_token_ids: tuple[int, ...] = ()
    raw_config: dict[str, object] = field(default_factory=dict, compare=False, repr=False)
    """config.json as read, for the fingerprint"""

    @property
    def attention_scale(self) -> float:
        return float(self.heads.head_dim) ** -0.5
