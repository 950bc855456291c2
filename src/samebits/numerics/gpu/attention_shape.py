"""What an attention kernel is compiled for, and what queries may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.operators import HeadLayout

LOG2_E = 1.4426950408889634
SMALLEST_TILE = 16
"""Rows of the smallest tensor-core tile."""


@dataclass(frozen=True)
class AttentionShape:
    """What an attention kernel is compiled for. Only `split_tokens` and `key_block_tokens` decide bits."""

    heads: HeadLayout
    page_tokens: int
    split_tokens: int = CONTRACT.split_tokens
    key_block_tokens: int = CONTRACT.key_block_tokens

    def __post_init__(self) -> None:
        heads = self.heads
        if heads.query_heads % heads.kv_heads:
            raise NumericsError(
                f"{heads.query_heads} query heads are no multiple of {heads.kv_heads} kv heads"
            )
        if heads.head_dim % 16 or not 16 <= heads.head_dim <= 256:
            raise NumericsError(
                f"attention wants a head_dim of 16 to 256 in steps of 16, not {heads.head_dim}"
            )
        for name, value in (("page_tokens", self.page_tokens), ("split_tokens", self.split_tokens)):
            if value <= 0 or value % self.key_block_tokens:
                raise NumericsError(
                    f"{name} must be a multiple of the key block ({self.key_block_tokens}), not {value}"
                )

    @property
    def group(self) -> int:
        """Query heads of a key-value head."""
        return self.heads.query_heads // self.heads.kv_heads

    @property
    def width(self) -> int:
        """head_dim rounded up to a power of two: what a tile holds."""
        return int(triton.next_power_of_2(self.heads.head_dim))

    def rows_for(self, tokens: int) -> int:
        """Rows of the smallest tile that holds so many query tokens."""
        return max(SMALLEST_TILE, int(triton.next_power_of_2(tokens * self.group)))

    def constants(self) -> dict[str, Any]:
        return {
            "QUERY_HEADS": self.heads.query_heads,
            "KV_HEADS": self.heads.kv_heads,
            "D": self.heads.head_dim,
            "WIDTH": self.width,
            "PAGE": self.page_tokens,
            "KEYS": self.key_block_tokens,
            "SPLIT": self.split_tokens,
        }


@dataclass(frozen=True)
class Context:
    """The keys and values that queries may see. `keys` and `values` act [pages, kv_heads, page_tokens, head_dim];
    positions int64 [rows]; page_table int32 [requests, pages of a request]."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    page_table: Tensor


def softmax_factor(scale: float) -> float:
    """What a score is multiplied by inside exp2: scale * log2(e), rounded to float32."""
    if not scale > 0.0:
        raise NumericsError(f"the attention scale must be positive, not {scale}")
    return float(np.float32(np.float64(np.float32(scale)) * LOG2_E))
