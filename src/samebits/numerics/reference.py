"""Float64 twins of the clauses: plain formulas that judge accuracy and nothing else.

Each function takes the operator's own inputs and returns float64; its docstring bounds the error of the exact
CPU profile, counted in float32 roundings of 2**-24.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samebits.numerics.operators import HeadLayout

# One float32 rounding is at most 2**-24 relative.
ROUNDING = 2.0**-24


def gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, in], weight [out, in], bias [out] -> [rows, out]."""
    y = x.double() @ weight.double().t()
    return y if bias is None else y + bias.double()


def gemm_bound(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Largest error of a chain of K roundings, element by element: K 2**-24 sum |x w| (first order), + bias."""
    magnitude = x.double().abs() @ weight.double().abs().t()
    if bias is not None:
        magnitude = magnitude + bias.double().abs()
    # Products of subnormal size round in absolute steps of 2**-150.
    return magnitude * ROUNDING * (x.shape[1] + 2) + x.shape[1] * 2.0**-150


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [rows, hidden], weight [hidden] -> [rows, hidden]. Error: at most (hidden / 32 + 10) roundings."""
    wide = x.double()
    scale = (wide.pow(2).mean(dim=-1, keepdim=True) + float(torch.tensor(eps, dtype=torch.float32))).rsqrt()
    return weight.double() * (wide * scale)


def rotate(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """x [rows, heads, head_dim] rotated by the table's rows at `positions` (rotate-half convention)."""
    cosine, sine = table[positions].double().unbind(dim=1)
    half = cosine.shape[1]
    low, high, rest = x.double().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine, rest], dim=-1)


def attention(queries: Tensor, keys: Tensor, values: Tensor, heads: HeadLayout, scale: float) -> Tensor:
    """Causal attention of the last rows of a context.

    queries [rows, query_heads, head_dim]; keys and values [context, kv_heads, head_dim] -> [rows, query width].
    Error: scores carry head_dim roundings of |q| |k| scale, which the exponent turns into a relative error.
    """
    rows, context = queries.shape[0], keys.shape[0]
    group = heads.query_heads // heads.kv_heads
    wide_keys = keys.double().repeat_interleave(group, dim=1)
    wide_values = values.double().repeat_interleave(group, dim=1)
    scores = torch.einsum("rhd,chd->hrc", queries.double() * scale, wide_keys)
    position = torch.arange(context - rows, context)
    scores = scores.masked_fill(torch.arange(context)[None, :] > position[:, None], float("-inf"))
    return torch.einsum("hrc,chd->rhd", scores.softmax(dim=-1), wide_values).reshape(rows, heads.query_width)


def silu_mul(gate_up: Tensor) -> Tensor:
    """[rows, 2 width] -> [rows, width]. Error: 6 roundings."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate / (1.0 + torch.exp(-gate)) * up


def log_sum_exp(logits: Tensor) -> Tensor:
    """[rows, vocabulary] -> [rows]. Error: absolute, vocabulary / 16 roundings of the sum and 2 of the result."""
    return logits.double().logsumexp(dim=-1)
