"""RoPE clause: the table, computed once in float64 and rounded to float32."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def rope_table(
    positions: int, rotary_dim: int, theta: float, kind: str, scaling: Mapping[str, float]
) -> Tensor:
    """float32 [positions, 2 (cos, sin), rotary_dim / 2]."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    frequencies = 1.0 / theta**exponents
    if kind == "llama3":
        factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
        original = scaling["original_max_position_embeddings"]
        wavelengths = 2.0 * math.pi / frequencies
        smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
        frequencies = (1.0 - smooth) * frequencies / factor + smooth * frequencies
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies[None, :]
    return torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
