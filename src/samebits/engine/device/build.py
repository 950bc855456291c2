"""From a loaded model to a loop on the GPU: buffers, warm-up, captured graphs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from samebits.config import EngineConfig
from samebits.engine.device.forward import ALONE, StepRanks
from samebits.engine.device.inputs import InputSizes
from samebits.engine.device.loop import DeviceLoop
from samebits.engine.device.place import CudaCapture, Place
from samebits.engine.device.rank_steps import BuildSteps
from samebits.engine.device.runner import DeviceRunner
from samebits.engine.rank_worker import device_order
from samebits.engine.ranks import RankProcesses
from samebits.engine.sampling_stage import SCORED_ROWS_AT_ONCE
from samebits.engine.shard import Shard
from samebits.errors import ConfigError, NumericsError
from samebits.models.digests import proof_folder
from samebits.models.shards import ModelShard
from samebits.models.spec import ModelSpec
from samebits.numerics.gpu.buckets import BUCKETS, bucket_of
from samebits.numerics.gpu.foreseen import ModelSizes
from samebits.numerics.gpu.operators import GpuOperators
from samebits.numerics.operators import Operators
from samebits.schedule.scheduler import SchedulerLimits

Progress = Callable[[str, int, int], None]

log = logging.getLogger(__name__)


def check_device_sizes(engine: EngineConfig) -> None:
    """Raise `ConfigError` where a step could hold more rows than any bucket."""
    if engine.step_tokens > BUCKETS[-1] or engine.max_running > BUCKETS[-1]:
        raise ConfigError(
            f"a step on a GPU holds at most {BUCKETS[-1]} tokens; --step-tokens is {engine.step_tokens}, --max-running "
            f"is {engine.max_running}"
        )


def build_device_loop(
    shard: Shard, limits: SchedulerLimits, ranks: RankProcesses | None, progress: Progress
) -> DeviceLoop:
    """The loop of a model whose KV storage has one page more than requests may own, for padding rows; together with
    the other ranks where there are some."""
    started = time.monotonic()
    engine = shard.engine
    sizes = input_sizes(limits, padding_page=shard.pages)
    buckets = graph_buckets(engine) if shard.operators.captures else []
    others = ALONE
    if ranks is not None:
        ranks.tell(BuildSteps(sizes, buckets))
        others = StepRanks(shard.group, lambda order: ranks.tell(device_order(order)))
    runner = DeviceRunner(shard.runner, Place(shard.operators.device), sizes, bucket_of, others)
    if buckets:
        runner.capture(buckets, CudaCapture(), progress)
        log.info("decode graphs of %s rows, %.1f s", buckets, time.monotonic() - started)
    else:
        log.info("no CUDA graphs: every step is eager")
    torch.cuda.synchronize()
    return DeviceLoop(runner, ahead=engine.loop == "overlapped", ranks=ranks)


def input_sizes(limits: SchedulerLimits, padding_page: int) -> InputSizes:
    """Room for every step within the limits. A captured one has as many requests as its bucket has rows, which may be
    more than ever run."""
    return InputSizes(
        rows=bucket_of(limits.step_tokens),
        requests=bucket_of(limits.max_running),
        sampled=bucket_of(limits.max_running),
        pages_per_request=limits.pages_per_request,
        page_tokens=limits.page_tokens,
        padding_page=padding_page,
    )


def foresee_kernels(operators: Operators, spec: ModelSpec, shard: ModelShard, engine: EngineConfig) -> None:
    """Begin to compile what a start of this rank's part of a model launches, while its weights are loaded."""
    if isinstance(operators, GpuOperators):
        sizes = ModelSizes(
            heads=shard.spec(spec).heads,
            hidden=spec.hidden,
            intermediate=spec.intermediate // shard.size,
            vocabulary=spec.vocabulary,
            normed=spec.qk_norm,
            rotary_dim=spec.rope.rotary_dim,
            page_tokens=engine.page_tokens,
        )
        operators.foresee(sizes)


def compile_ahead(operators: Operators, engine: EngineConfig) -> None:
    """Begin to compile what `prepare_operators` will prove, while the probes run."""
    if isinstance(operators, GpuOperators):
        check_device_sizes(engine)
        with suppress(NumericsError):  # proofs that are no good are named by `prepare_operators`
            operators.compile_ahead(*_rows(engine), engine.page_tokens, proof_folder())


def _rows(engine: EngineConfig) -> tuple[int, int]:
    """Of the largest step, and those of it that get logits at once."""
    sampled = max(bucket_of(engine.max_running), bucket_of(SCORED_ROWS_AT_ONCE))
    return bucket_of(engine.step_tokens), sampled


def prepare_operators(operators: Operators, engine: EngineConfig, progress: Progress) -> None:
    """Prove the kernels of the model, or find their proofs, before KV pages take the memory. Raises `ConfigError`
    where nothing is proven for one, or where a step could hold more rows than any bucket."""
    check_device_sizes(engine)
    if not isinstance(operators, GpuOperators):
        return
    started = time.monotonic()
    try:
        operators.bind(*_rows(engine), engine.page_tokens, proof_folder(), progress)
    except NumericsError as error:
        raise ConfigError(str(error)) from error
    log.info("kernels bound in %.1f s", time.monotonic() - started)


def graph_buckets(engine: EngineConfig) -> Sequence[int]:
    """The decode steps that are captured: no step has more rows than `step_tokens`."""
    largest = engine.max_running if engine.cuda_graph_max_bs < 0 else engine.cuda_graph_max_bs
    if not largest:
        return []
    largest = bucket_of(min(largest, engine.max_running, engine.step_tokens))
    return [bucket for bucket in BUCKETS if bucket <= largest]
