"""Loading a model: from the user's settings to weights that the operators can read, and to the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from samebits.config import ModelConfig
from samebits.errors import ModelFileError, NumericsError, UnsupportedModelError
from samebits.grammar.compiler import grammar_version
from samebits.models.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint, read_json
from samebits.models.decoder import DecoderWeights, forward, logits
from samebits.models.digests import (
    check_unchanged,
    file_state,
    text_digests,
    user_cache_folder,
    weight_digests,
)
from samebits.models.dummy import dummy_source
from samebits.models.family import Family
from samebits.models.generation import end_tokens, read_generation, sampling_defaults
from samebits.models.hf_config import ConfigReader, context_limit
from samebits.models.locate import locate_model
from samebits.models.progress import Progress, silent
from samebits.models.registry import family_of
from samebits.models.shards import WHOLE, ModelShard
from samebits.models.spec import ModelSpec
from samebits.models.weights import CheckpointSource, TensorSource, build_weights, check_tensors
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.contract import CONTRACT, constants
from samebits.numerics.operators import Operators
from samebits.numerics.rope import rope_table
from samebits.plan import Plan
from samebits.sampling_params import SamplingDefaults

FIRST_TOKEN = "running a first token"
DUMMY_DTYPE = "bfloat16"
"""Storage dtype of dummy weights whose config names none."""


@dataclass(frozen=True)
class ModelFiles:
    """What a model's JSON files say, before any weight is read; enough for a tokenizer and a front end."""

    folder: Path
    family: Family
    spec: ModelSpec
    context_length: int
    """longest request in tokens, prompt and output"""
    sampling_defaults: SamplingDefaults

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end a text."""
        return self.spec.eos_token_ids


@dataclass(frozen=True)
class LoadedModel:
    """A model on a device, and what the plan must know of where it came from."""

    files: ModelFiles
    spec: ModelSpec
    """`files.spec` with the storage dtype of the weights in use and the heads of this rank"""
    weights: DecoderWeights
    rope: Tensor
    """float32 [context length, 2 (cos, sin), rotary_dim / 2]"""
    weight_digests: Mapping[str, str]
    """SHA-256 of each shard by its name, or how the dummy weights were made"""
    text_digests: Mapping[str, str]
    """SHA-256 of each file of the tokenizer and chat template by its name"""
    tensor_parallel: int = 1
    """degree"""


def read_model_files(config: ModelConfig) -> ModelFiles:
    """Find the model and read its JSON files. Raises `ConfigError` when it is not there, `ModelFileError` when a
    file is broken, `UnsupportedModelError` when it describes a model that Samebits does not run."""
    folder = locate_model(config.model, config.load_format)
    path = folder / CONFIG_FILE
    reader = ConfigReader(read_json(path), str(path))
    family = family_of(reader)
    generation = read_generation(folder)
    spec = family.read_spec(reader, config.context_length)
    return ModelFiles(
        folder=folder,
        family=family,
        spec=replace(spec, eos_token_ids=end_tokens(reader, generation, spec.vocabulary)),
        context_length=context_limit(reader, config.context_length),
        sampling_defaults=sampling_defaults(generation, config.sampling_defaults),
    )


def load_model(
    config: ModelConfig,
    operators: Operators,
    progress: Progress = silent,
    cache: Path | None = None,
    shard: ModelShard = WHOLE,
) -> LoadedModel:
    """Read, check and pack the weights of `config.model` for `operators`, or the part of them that `shard` names; then
    all ranks must load at the same time, for they run a token together.

    `cache` is the folder where digests of shards are kept (None: the user's). Raises what `read_model_files`
    does, and `ModelFileError` naming the file or tensor that is missing, extra, mis-shaped or damaged.
    """
    files = read_model_files(config)
    shard.check(files.spec)
    source: TensorSource
    states: dict[Path, dict[str, int]] = {}
    spec = replace(files.spec, dtype=weights_dtype(config, files))
    if config.load_format == "dummy":
        source = dummy_source(spec, files.family.names, config.dummy_seed, operators.device)
        digests = source.description()
    else:
        checkpoint = open_checkpoint(files.folder)
        check_tensors(checkpoint, spec, files.family.names, convert=config.dtype != "auto")
        source = CheckpointSource(checkpoint, getattr(torch, spec.dtype), operators.device)
        states = {shard: file_state(shard) for shard in checkpoint.shards}
        digests = weight_digests(checkpoint.shards, cache or user_cache_folder(), progress)
    rope = spec.rope
    try:
        table = rope_table(files.context_length, rope.theta, rope.rotary_dim, rope.kind, dict(rope.scaling))
        table = table.to(operators.device)
        weights = build_weights(spec, files.family.names, source, operators, progress, shard)
        for path, state in states.items():
            check_unchanged(path, state, digests[path.name])
        progress(FIRST_TOKEN, 0, 1)
        _run_one_token(shard.spec(spec), weights, operators, table)
        progress(FIRST_TOKEN, 1, 1)
    except NumericsError as error:
        raise UnsupportedModelError(
            f"{files.folder}: the numerics profile '{operators.profile}' cannot run this model: {error}"
        ) from error
    return LoadedModel(
        files=files,
        spec=shard.spec(spec),
        tensor_parallel=shard.size,
        weights=weights,
        rope=table,
        weight_digests=digests,
        text_digests=text_digests(files.folder),
    )


def make_plan(model: LoadedModel, operators: Operators, default_seed: int | None) -> Plan:
    """The plan of a loaded model on these operators; runs the operators' probes. `default_seed` is that of requests
    which name none (None: a random one each)."""
    dtype: torch.dtype = getattr(torch, model.spec.dtype)
    return Plan(
        contract=constants(),
        profile=operators.profile,
        probes=operators.probe_digests([dtype]),
        model_config=model.spec.raw_config,
        dtype=model.spec.dtype,
        weights=model.weight_digests,
        context_length=model.files.context_length,
        end_tokens=model.files.end_tokens,
        sampling_defaults={**msgspec.to_builtins(model.files.sampling_defaults), "seed": default_seed},
        tokenizer=model.text_digests,
        grammar=grammar_version(),
        tensor_parallel=model.tensor_parallel,
    )


def _run_one_token(spec: ModelSpec, weights: DecoderWeights, operators: Operators, rope: Tensor) -> None:
    """One token through the whole decoder: a shape that these operators do not run fails here, not in a request."""
    page_tokens, device = CONTRACT.key_block_tokens, operators.device
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    batch = RaggedBatch(
        token_ids=zero,
        positions=zero,
        slots=zero,
        query_start=torch.tensor([0, 1], dtype=torch.int32, device=device),
        page_table=torch.zeros((1, 1), dtype=torch.int32, device=device),
        page_tokens=page_tokens,
        row_faults=torch.zeros(1, dtype=torch.uint8, device=device),
    )
    kv = operators.allocate_kv(spec.layers, 1, page_tokens, spec.heads)
    logits(spec, weights, operators, forward(spec, weights, operators, batch, kv, rope))


def weights_dtype(config: ModelConfig, files: ModelFiles) -> str:
    """The storage dtype: the one asked for, else the config's, else that of the weights that there are."""
    if config.dtype != "auto" or files.spec.dtype:
        return config.dtype if config.dtype != "auto" else files.spec.dtype
    return (
        DUMMY_DTYPE
        if config.load_format == "dummy"
        else _stored_dtype(open_checkpoint(files.folder), files.family)
    )


def _stored_dtype(checkpoint: Checkpoint, family: Family) -> str:
    """Dtype of the embedding, for a config that names none."""
    stored = checkpoint.tensors.get(family.names.embedding)
    if stored is None:
        raise ModelFileError(f"{checkpoint.folder}: tensor {family.names.embedding!r} is missing")
    if stored.dtype is None:
        raise ModelFileError(
            f"{stored.shard}: tensor {family.names.embedding!r} is stored as {stored.stored_type}; supported are "
            "BF16, F16, F32"
        )
    return str(stored.dtype).removeprefix("torch.")
