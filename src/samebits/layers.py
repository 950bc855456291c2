"""The layers of a decoder as pure functions: operators, frozen weights and the batch in, activations out.

No arithmetic happens here; every product, norm and sum is an operator with a clause of its own. "act" is the
activation dtype of the operators. A column-parallel linear splits its outputs over ranks, a row-parallel one
its inputs; with one rank both are the plain GEMM.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import HeadLayout, KvLayer, Operators, PackedLinear


@dataclass(frozen=True)
class AttentionWeights:
    """One attention block, as this rank holds it."""

    input_norm: Tensor
    """[hidden]"""
    qkv: PackedLinear
    """[query width + 2 kv widths, hidden]: queries, keys, values"""
    output: PackedLinear
    """[hidden, query width]"""
    query_norm: Tensor | None
    """[head_dim], of the models that norm queries per head"""
    key_norm: Tensor | None
    """[head_dim]"""


@dataclass(frozen=True)
class MlpWeights:
    """One gated MLP, as this rank holds it."""

    input_norm: Tensor
    """[hidden]"""
    gate_up: PackedLinear
    """[2 intermediate, hidden]: gate, then up"""
    down: PackedLinear
    """[hidden, intermediate]"""


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer."""

    attention: AttentionWeights
    mlp: MlpWeights


@dataclass(frozen=True)
class AttentionShape:
    """What an attention block must know beside its weights."""

    heads: HeadLayout
    scale: float
    """factor of the scores"""
    norm_eps: float
    """of the per-head norms of queries and keys"""


def column_linear(operators: Operators, x: Tensor, weight: PackedLinear) -> Tensor:
    """A linear whose outputs are split over ranks. x act [rows, in] -> act [rows, out of this rank]."""
    return operators.linear(x, weight)


def row_linear_add_norm(
    operators: Operators,
    x: Tensor,
    weight: PackedLinear,
    residual: Tensor,
    norm: Tensor,
    eps: float,
    whole: bool = True,
) -> tuple[Tensor, Tensor]:
    """A linear whose inputs are split over ranks, with the collective that joins their partial sums, and what follows
    it: (the norm of its sum with the residual, that sum), both act [rows, out], the same on every rank but for rows of
    the sum that nobody reads without `whole`."""
    return operators.row_linear_add_norm(x, weight, residual, norm, eps, whole)


def attention_block(
    operators: Operators,
    x: Tensor,
    weights: AttentionWeights,
    shape: AttentionShape,
    rope: Tensor,
    batch: RaggedBatch,
    kv: KvLayer,
    kept: Tensor | None = None,
) -> Tensor:
    """Attention over normed activations; writes the rows' keys and values into `kv` and may set fault flags.
    x act [rows, hidden] -> act [rows, query width of this rank] of the rows `kept`, the batch's wanted ones (None:
    of all), which the output projection takes."""
    qkv = column_linear(operators, x, weights.qkv)
    queries = operators.norm_rope_store(
        qkv, shape.heads, weights.query_norm, weights.key_norm, shape.norm_eps, rope, batch, kv
    )
    mixed = operators.attention(queries, shape.heads, shape.scale, batch, kv, only_wanted=kept is not None)
    if kept is not None:
        mixed = mixed.index_select(0, kept)
    return mixed


def gated_mlp(operators: Operators, x: Tensor, weights: MlpWeights) -> Tensor:
    """silu(gate) * up over normed activations, which the down projection takes.
    x act [rows, hidden] -> act [rows, intermediate of this rank]."""
    return operators.gated_linear(x, weights.gate_up)
