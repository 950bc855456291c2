"""The process of a rank other than 0: it loads its shard and then does as it is told."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import torch

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.device.forward import LogitsOrder, StepOrder
from samebits.engine.device.inputs import StepShape
from samebits.engine.device.place import CudaCapture
from samebits.engine.device.rank_steps import BuildSteps, RankSteps
from samebits.engine.shard import Ranks, load_shard, make_numerics
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.collectives.gloo import GlooGroup
from samebits.numerics.collectives.group import Group


@dataclass(frozen=True)
class Forward:
    """Run the model over a batch. The fields are those of `RaggedBatch`."""

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    query_start: np.ndarray
    page_table: np.ndarray
    page_tokens: int


@dataclass(frozen=True)
class Logits:
    """Multiply hidden states with the output matrix."""

    hidden: np.ndarray
    """act [rows, hidden]"""


@dataclass(frozen=True)
class DeviceStep:
    """Compute a step's forward on the device."""

    shape: StepShape
    captured: bool
    forward: Forward
    wanted: Sequence[int] | None


@dataclass(frozen=True)
class Stop:
    """Leave."""


Order = Forward | Logits | BuildSteps | DeviceStep | LogitsOrder | Stop


@dataclass(frozen=True)
class Failed:
    """A rank's last words."""

    message: str
    traceback: str


def forward_order(batch: RaggedBatch) -> Forward:
    """The order to run `batch`."""
    return Forward(
        batch.token_ids.numpy(),
        batch.positions.numpy(),
        batch.slots.numpy(),
        batch.query_start.numpy(),
        batch.page_table.numpy(),
        batch.page_tokens,
    )


def join_faults(group: Group, faults: torch.Tensor) -> None:
    """Fault flags uint8 [rows] of all ranks into each: a key or value that is not finite may be any rank's."""
    torch.amax(group.all_gather(faults), dim=0, out=faults)


def device_order(order: StepOrder | LogitsOrder) -> Order:
    """What the other ranks are told of it."""
    if isinstance(order, LogitsOrder):
        return order
    return DeviceStep(order.shape, order.captured, forward_order(order.batch), order.wanted)


def rank_process(
    model: ModelConfig,
    engine: EngineConfig,
    default_seed: int | None,
    rank: int,
    size: int,
    meeting_file: Path,
    orders: Connection,
) -> None:
    """Main function of a rank's process. It leaves when it is told to, when rank 0 is gone, and with a `Failed`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = 0
    _leave_with_parent()
    try:
        _serve(model, engine, default_seed, Ranks(GlooGroup(meeting_file, rank, size), meeting_file), orders)
    except (EOFError, BrokenPipeError):  # rank 0 is gone, and whoever watches it knows
        status = 1
    except BaseException as error:
        with contextlib.suppress(OSError):
            orders.send(Failed(f"{type(error).__name__}: {error}", traceback.format_exc()))
        status = 1
    # Nothing is left to save, and taking down a process full of compiled kernels takes seconds.
    os._exit(status)


def _leave_with_parent() -> None:
    """End this process when rank 0's ends, even if the device keeps the main thread waiting."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="samebits-parent", daemon=True).start()


def _serve(
    model: ModelConfig, engine: EngineConfig, default_seed: int | None, ranks: Ranks, orders: Connection
) -> None:
    """Load this rank's shard and obey until told to stop."""
    operators, group = make_numerics(model, engine, ranks)
    shard = load_shard(model, engine, default_seed, ranks, operators, group, lambda *news: None)
    steps: RankSteps | None = None
    while True:
        match orders.recv():
            case Forward() as order:
                batch = host_batch(order)
                shard.runner.forward(batch)
                join_faults(group, batch.row_faults)
            case Logits(hidden=hidden):
                shard.runner.logits(torch.from_numpy(hidden))
            case BuildSteps(sizes=sizes, buckets=buckets):
                steps = RankSteps(shard.runner, shard.loaded.spec.hidden, group, sizes)
                if buckets:
                    steps.capture(buckets, CudaCapture())
            case DeviceStep() as step:
                assert steps is not None
                steps.follow(step_order(step))
            case LogitsOrder() as logits:
                assert steps is not None
                steps.follow(logits)
            case Stop():
                return


def step_order(told: DeviceStep) -> StepOrder:
    """What rank 0 did, as far as another rank does it, too."""
    return StepOrder(told.shape, told.captured, host_batch(told.forward), wanted=told.wanted)


def host_batch(order: Forward) -> RaggedBatch:
    """The batch that an order was made of."""
    return RaggedBatch(
        token_ids=torch.from_numpy(order.token_ids),
        positions=torch.from_numpy(order.positions),
        slots=torch.from_numpy(order.slots),
        query_start=torch.from_numpy(order.query_start),
        page_table=torch.from_numpy(order.page_table),
        page_tokens=order.page_tokens,
        row_faults=torch.zeros(order.token_ids.shape[0], dtype=torch.uint8),
    )
