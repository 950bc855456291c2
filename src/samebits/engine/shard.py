"""One rank's part of a model, ready to run: numerics, weights, plan, KV storage. Every rank makes its own alike."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.decoder_runner import DecoderRunner
from samebits.engine.sizes import device_memory, filled_in, kv_page_count, multiprocessors_of
from samebits.engine.threads import default_threads
from samebits.errors import ConfigError, NumericsError
from samebits.models.load import LoadedModel, load_model, make_plan, read_model_files, weights_dtype
from samebits.models.shards import ModelShard
from samebits.numerics.collectives.group import SOLO, Group
from samebits.numerics.operators import Operators
from samebits.numerics.profiles import choose_device, make_operators
from samebits.plan import Plan

Progress = Callable[[str, int, int], None]
DEVICE_MEETING = ".device"
"""Ending of the path where the groups on the devices meet."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """The group of ranks at a start: through the host, and the path where they met."""

    group: Group = SOLO
    meeting_file: Path = Path()


@dataclass(frozen=True)
class Shard:
    """A loaded part of a model."""

    runner: DecoderRunner
    loaded: LoadedModel
    operators: Operators
    plan: Plan
    group: Group
    """of the tensors: through the devices where there are some"""
    engine: EngineConfig
    """with the sizes of a step filled in"""
    pages: int
    """KV pages of requests"""


def check_parallel(model: ModelConfig, engine: EngineConfig) -> None:
    """Raises `ConfigError` where the ranks could not be held here, before any of them is started."""
    if choose_device(model.device).type != "cuda":
        return
    if engine.ranks_per_gpu > 1 and not (engine.kv_memory_mib or engine.kv_pages):
        raise ConfigError(
            "--ranks-per-gpu takes --kv-memory-mib: ranks that share a GPU cannot share out the rest of it"
        )
    if engine.ranks_per_gpu > 1 and engine.data_parallel > 1:
        raise ConfigError("--ranks-per-gpu is for one model, and not for the replicas of --data-parallel")
    from samebits.numerics.gpu.rank_group import check_ranks

    try:
        check_ranks(model.tensor_parallel, model.numerics, engine.all_reduce, engine.ranks_per_gpu)
    except NumericsError as error:
        raise ConfigError(str(error)) from error


def make_numerics(model: ModelConfig, engine: EngineConfig, ranks: Ranks) -> tuple[Operators, Group]:
    """The operators of this rank and the group over which they exchange tensors. Raises `ConfigError` for what does
    not exist."""
    threads = engine.threads or (0 if ranks.group.size == 1 else default_threads(ranks.group.size))
    dtype: torch.dtype = getattr(torch, weights_dtype(model, read_model_files(model)))
    try:
        group = _tensor_group(model, engine, ranks)
        operators = make_operators(
            model.numerics, model.device, threads, group, dtype, model.attention_split_tokens
        )
    except NumericsError as error:
        raise ConfigError(str(error)) from error
    return operators, group


def _tensor_group(model: ModelConfig, engine: EngineConfig, ranks: Ranks) -> Group:
    size = ranks.group.size
    if size == 1:
        return ranks.group
    if choose_device(model.device).type != "cuda":
        if ranks.group.rank == 0:
            log.info("[AR] %d ranks on the CPU: all parts are gathered and added, for every size", size)
        return ranks.group
    from samebits.numerics.gpu.rank_group import open_rank_group

    meeting = ranks.meeting_file.with_name(ranks.meeting_file.name + DEVICE_MEETING)
    return open_rank_group(meeting, ranks.group, model.numerics, engine.all_reduce, engine.ranks_per_gpu)


def load_shard(
    model: ModelConfig,
    engine: EngineConfig,
    default_seed: int | None,
    ranks: Ranks,
    operators: Operators,
    group: Group,
    progress: Progress,
) -> Shard:
    """Load this rank's part and prove its kernels; all ranks do so together. Raises `NumericsError` where their plans
    differ, and what loading raises."""
    operators.compile(lambda name, done, total: progress("compiling kernels", done, total))
    shard = ModelShard(ranks.group.rank, ranks.group.size)
    on_gpu = operators.device.type == "cuda"
    engine = filled_in(engine, multiprocessors_of(operators.device), ranks.group.size)
    if on_gpu:
        from samebits.engine.device.build import compile_ahead, foresee_kernels, prepare_operators

        foresee_kernels(operators, read_model_files(model).spec, shard, engine)
    loaded = load_model(model, operators, progress, shard=shard)
    if on_gpu:
        compile_ahead(operators, engine)
    plan = make_plan(loaded, operators, default_seed)
    check_fingerprints(ranks.group, plan)
    if on_gpu:
        prepare_operators(operators, engine, progress)
    bytes_per_page = operators.kv_bytes_per_token(loaded.spec.layers, loaded.spec.heads) * engine.page_tokens
    own = kv_page_count(engine, bytes_per_page, device_memory(operators.device) if on_gpu else None)
    pages = int(ranks.group.all_gather(torch.tensor([own])).min())
    runner = DecoderRunner(
        spec=loaded.spec,
        weights=loaded.weights,
        operators=operators,
        rope=loaded.rope,
        # On a GPU one page more, for padding rows.
        kv=operators.allocate_kv(loaded.spec.layers, pages + on_gpu, engine.page_tokens, loaded.spec.heads),
    )
    return Shard(runner, loaded, operators, plan, group, engine, pages)


def check_fingerprints(group: Group, plan: Plan) -> None:
    """Raises `NumericsError` naming the ranks whose plan is not rank 0's."""
    own = torch.tensor(list(plan.fingerprint.encode()), dtype=torch.uint8)
    found = [bytes(row.tolist()).decode() for row in group.all_gather(own)]
    others = [f"rank {rank}: {text}" for rank, text in enumerate(found) if text != found[0]]
    if others:
        raise NumericsError(
            f"the ranks have different plans (rank 0: {found[0]}, {', '.join(others)}); do all see the same files?"
        )
