"""The decoder that all families share: embedding, layers, final norm, logits. Pure functions, no arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samebits.layers import AttentionShape, LayerWeights, attention_block, gated_mlp, row_linear_add_norm
from samebits.models.spec import ModelSpec
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import KvLayer, Operators, PackedLinear


@dataclass(frozen=True)
class DecoderWeights:
    """All weights of a model on one device, packed for the operators that will read them."""

    embedding: Tensor
    """[vocabulary, hidden], in the storage dtype"""
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    """[hidden]"""
    output: PackedLinear
    """[vocabulary, hidden]: the language-model head, or the embedding packed again when the two are tied"""


def forward(
    spec: ModelSpec,
    weights: DecoderWeights,
    operators: Operators,
    batch: RaggedBatch,
    kv: tuple[KvLayer, ...],
    rope: Tensor,
) -> Tensor:
    """Run the decoder over one ragged batch -> act [rows, hidden] of the wanted rows, final norm applied.

    `kv` holds one entry a layer; each gains the keys and values of the batch's rows at `batch.slots`. `rope` is
    the float32 table [positions, 2, rotary_dim / 2]. Rows that met a non-finite value have their flag set in
    `batch.row_faults`.
    """
    shape = AttentionShape(spec.heads, spec.attention_scale, spec.norm_eps)
    residual = operators.embed(batch.token_ids, weights.embedding)
    x = operators.rms_norm(residual, weights.layers[0].attention.input_norm, spec.norm_eps)
    for index, (layer, pages) in enumerate(zip(weights.layers, kv, strict=True)):
        # Nobody reads what the last layer makes of the other rows: their keys and values are all that is left of them.
        kept = batch.wanted if index + 1 == len(weights.layers) else None
        mixed = attention_block(operators, x, layer.attention, shape, rope, batch, pages, kept)
        residual = residual if kept is None else residual.index_select(0, kept)
        x, residual = row_linear_add_norm(
            operators,
            mixed,
            layer.attention.output,
            residual,
            layer.mlp.input_norm,
            spec.norm_eps,
            whole=False,
        )
        gated = gated_mlp(operators, x, layer.mlp)
        # Of what the last layer begins with rows are taken, and what the norm behind it gives is kept for later.
        whole = index + 2 >= len(weights.layers)
        x, residual = row_linear_add_norm(
            operators, gated, layer.mlp.down, residual, _norm_after(weights, index), spec.norm_eps, whole
        )
    return x


def logits(spec: ModelSpec, weights: DecoderWeights, operators: Operators, hidden: Tensor) -> Tensor:
    """Logits of the rows that want them; nothing in `spec` scales or caps them.
    hidden act [rows, hidden] -> float32 [rows, vocabulary]."""
    return operators.logits(hidden, weights.output)


def _norm_after(weights: DecoderWeights, index: int) -> Tensor:
    """The norm that follows layer `index`: the next layer's first, or the final one."""
    if index + 1 < len(weights.layers):
        return weights.layers[index + 1].attention.input_norm
    return weights.final_norm
