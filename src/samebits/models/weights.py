"""From named tensors to `DecoderWeights`: what a spec expects, the checks, and the fusing of q/k/v and gate/up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from samebits.errors import ModelFileError
from samebits.layers import AttentionWeights, LayerWeights, MlpWeights
from samebits.models.checkpoint import Checkpoint, StoredTensor, whole
from samebits.models.decoder import DecoderWeights
from samebits.models.family import WeightNames
from samebits.models.progress import Progress
from samebits.models.shards import WHOLE, ModelShard
from samebits.models.spec import ModelSpec
from samebits.numerics.operators import Operators, PackedLinear

STAGE = "loading weights"
Cut = Callable[[Tensor], Tensor]
"""Takes a rank's part of a tensor."""


class TensorSource(Protocol):
    """Where the loader takes a weight from, by its name in a checkpoint."""

    def tensor(self, name: str, take: Cut = whole) -> Tensor:
        """What `take` takes of the tensor, in the storage dtype of the spec, on the host or on the device that it is
        for."""


def expected_shapes(spec: ModelSpec, names: WeightNames) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this spec must hold, by name."""
    heads, hidden = spec.heads, spec.hidden
    shapes: dict[str, tuple[int, ...]] = {names.embedding: (spec.vocabulary, hidden)}

    def linear(name: str, out_features: int, in_features: int, bias: bool) -> None:
        shapes[name + ".weight"] = (out_features, in_features)
        if bias:
            shapes[name + ".bias"] = (out_features,)

    for index in range(spec.layers):
        at = partial(_at_layer, layer=index)
        shapes[at(names.attention_norm)] = (hidden,)
        linear(at(names.query), heads.query_width, hidden, spec.qkv_bias)
        linear(at(names.key), heads.kv_width, hidden, spec.qkv_bias)
        linear(at(names.value), heads.kv_width, hidden, spec.qkv_bias)
        linear(at(names.attention_output), hidden, heads.query_width, spec.output_bias)
        if spec.qk_norm:
            shapes[at(names.query_norm)] = (heads.head_dim,)
            shapes[at(names.key_norm)] = (heads.head_dim,)
        shapes[at(names.mlp_norm)] = (hidden,)
        linear(at(names.gate), spec.intermediate, hidden, spec.mlp_bias)
        linear(at(names.up), spec.intermediate, hidden, spec.mlp_bias)
        linear(at(names.down), hidden, spec.intermediate, spec.mlp_bias)
    shapes[names.final_norm] = (hidden,)
    if not spec.tied_embeddings:
        linear(names.output, spec.vocabulary, hidden, False)
    return shapes


def check_tensors(checkpoint: Checkpoint, spec: ModelSpec, names: WeightNames, convert: bool) -> None:
    """Refuse missing, extra and mis-shaped tensors, and types other than the spec's unless `convert`."""
    expected = expected_shapes(spec, names)
    output = names.output + ".weight"
    for name, stored in sorted(checkpoint.tensors.items()):
        if name.endswith(names.ignored):
            continue
        if name == output and spec.tied_embeddings:
            _check_readable(name, stored)
            _check_tied_output(checkpoint, names)
            continue
        if name not in expected:
            raise ModelFileError(
                f"{stored.shard}: tensor {name!r} is no part of a {spec.family} model like this"
            )
        if stored.shape != expected[name]:
            raise ModelFileError(
                f"{stored.shard}: tensor {name!r} has shape {list(stored.shape)}, but config.json asks for "
                f"{list(expected[name])}"
            )
        _check_readable(name, stored)
        if not convert and stored.dtype != getattr(torch, spec.dtype):
            raise ModelFileError(
                f"{stored.shard}: tensor {name!r} is stored as {stored.stored_type}, but the model is {spec.dtype}; "
                f"--dtype {spec.dtype} converts it"
            )
    missing = sorted(set(expected) - set(checkpoint.tensors))
    if missing:
        hint = " (config.json says that embeddings are not tied)" if missing[0] == output else ""
        raise ModelFileError(
            f"{checkpoint.folder}: tensor {missing[0]!r} is missing{hint}, {len(missing)} tensors in all"
        )


def _check_readable(name: str, stored: StoredTensor) -> None:
    if stored.dtype is None:
        raise ModelFileError(
            f"{stored.shard}: tensor {name!r} is stored as {stored.stored_type}; supported are BF16, F16, F32"
        )


def _check_tied_output(checkpoint: Checkpoint, names: WeightNames) -> None:
    """A tied model may store its head as well, but only as the same matrix."""
    output = names.output + ".weight"
    if names.embedding in checkpoint.tensors and not torch.equal(
        checkpoint.read(output), checkpoint.read(names.embedding)
    ):
        raise ModelFileError(
            f"{checkpoint.tensors[output].shard}: tensor {output!r} differs from {names.embedding!r}, but "
            "config.json ties the two (tie_word_embeddings)"
        )


@dataclass(frozen=True)
class CheckpointSource:
    """Tensors of a checked checkpoint, converted to the storage dtype where it differs."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device | str = "cpu"

    def tensor(self, name: str, take: Cut = whole) -> Tensor:
        stored = self.checkpoint.read(name, self.device, take)
        if stored.dtype == self.dtype:
            return stored
        converted = stored.to(self.dtype)
        if not torch.equal(torch.isfinite(converted), torch.isfinite(stored)):
            raise ModelFileError(
                f"{self.checkpoint.tensors[name].shard}: tensor {name!r} has values too large for --dtype "
                f"{str(self.dtype).removeprefix('torch.')}"
            )
        return converted


def build_weights(
    spec: ModelSpec,
    names: WeightNames,
    source: TensorSource,
    operators: Operators,
    progress: Progress,
    shard: ModelShard = WHOLE,
) -> DecoderWeights:
    """Read, cut, fuse and pack all weights for the operators. `spec` is the whole model's."""
    total = spec.layers + 2
    progress(STAGE, 0, total)
    embedding = source.tensor(names.embedding, shard.vocabulary).to(operators.device)
    progress(STAGE, 1, total)
    layers = []
    for index in range(spec.layers):
        layers.append(_layer(spec, names, source, operators, index, shard))
        progress(STAGE, index + 2, total)
    final_norm = _vector(source, names.final_norm, operators)
    if spec.tied_embeddings:
        output = embedding
    else:
        output = source.tensor(names.output + ".weight", shard.vocabulary).to(operators.device)
    packed = operators.pack_output(output, spec.vocabulary)
    progress(STAGE, total, total)
    return DecoderWeights(embedding, tuple(layers), final_norm, packed)


def _layer(
    spec: ModelSpec,
    names: WeightNames,
    source: TensorSource,
    operators: Operators,
    index: int,
    shard: ModelShard,
) -> LayerWeights:
    at = partial(_at_layer, layer=index)

    def vector(name: str) -> Tensor:
        return _vector(source, at(name), operators)

    def kv_rows(tensor: Tensor) -> Tensor:
        return shard.kv_rows(tensor, spec.heads)

    def columns(parts: Mapping[str, Cut], bias: bool) -> PackedLinear:
        """A column-parallel linear, fused of several; each part is cut by itself."""

        def fused(ending: str) -> Tensor:
            cut = [source.tensor(at(name) + ending, take) for name, take in parts.items()]
            return torch.cat(cut).to(operators.device)

        return operators.pack_linear(fused(".weight"), fused(".bias") if bias else None)

    def inputs(name: str, bias: bool) -> PackedLinear:
        """A row-parallel linear; its bias is of the joined sum, and every rank has it whole."""
        weight = source.tensor(at(name) + ".weight", shard.inputs).to(operators.device)
        whole_bias = source.tensor(at(name) + ".bias").to(operators.device) if bias else None
        return operators.pack_row_linear(weight, whole_bias)

    attention = AttentionWeights(
        input_norm=vector(names.attention_norm),
        qkv=columns({names.query: shard.rows, names.key: kv_rows, names.value: kv_rows}, spec.qkv_bias),
        output=inputs(names.attention_output, spec.output_bias),
        query_norm=vector(names.query_norm) if spec.qk_norm else None,
        key_norm=vector(names.key_norm) if spec.qk_norm else None,
    )
    mlp = MlpWeights(
        input_norm=vector(names.mlp_norm),
        gate_up=columns({names.gate: shard.rows, names.up: shard.rows}, spec.mlp_bias),
        down=inputs(names.down, spec.mlp_bias),
    )
    return LayerWeights(attention, mlp)


def _vector(source: TensorSource, name: str, operators: Operators) -> Tensor:
    """A norm's weight, widened to the activation dtype now rather than at each use; no value changes."""
    stored = source.tensor(name)
    wider = torch.promote_types(stored.dtype, operators.activation_dtype)
    return stored.to(operators.device, wider)


def _at_layer(pattern: str, layer: int) -> str:
    return pattern.format(layer=layer)
