"""The process of a rank other than 0: it loads its shard and then does as it is told."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.threads import default_threads
from samebits.errors import NumericsError
from samebits.models import decoder
from samebits.models.load import load_model, make_plan
from samebits.models.shards import ModelShard
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.collectives.gloo import GlooGroup
from samebits.numerics.collectives.group import Group
from samebits.numerics.operators import KvLayer
from samebits.numerics.profiles import make_operators
from samebits.plan import Plan


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
class AllocateKv:
    """Make the KV storage."""

    pages: int


@dataclass(frozen=True)
class Stop:
    """Leave."""


Order = Forward | Logits | AllocateKv | Stop


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


def check_fingerprints(group: Group, plan: Plan) -> None:
    """Raises `NumericsError` naming the ranks whose plan is not rank 0's."""
    own = torch.tensor(list(plan.fingerprint.encode()), dtype=torch.uint8)
    found = [bytes(row.tolist()).decode() for row in group.all_gather(own)]
    others = [f"rank {rank}: {text}" for rank, text in enumerate(found) if text != found[0]]
    if others:
        raise NumericsError(
            f"the ranks have different plans (rank 0: {found[0]}, {', '.join(others)}); do all see the same files?"
        )


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
    try:
        _serve(model, engine, default_seed, GlooGroup(meeting_file, rank, size), orders)
    except (EOFError, BrokenPipeError):  # rank 0 is gone, and whoever watches it knows
        status = 1
    except BaseException as error:
        with contextlib.suppress(OSError):
            orders.send(Failed(f"{type(error).__name__}: {error}", traceback.format_exc()))
        status = 1
    # Nothing is left to save, and taking down a process full of compiled kernels takes seconds.
    os._exit(status)


def _serve(
    model: ModelConfig, engine: EngineConfig, default_seed: int | None, group: Group, orders: Connection
) -> None:
    """Load this rank's shard and obey until told to stop."""
    operators = make_operators(
        model.numerics, model.device, engine.threads or default_threads(group.size), group
    )
    operators.compile(lambda name, done, total: None)
    loaded = load_model(model, operators, shard=ModelShard(group.rank, group.size))
    check_fingerprints(group, make_plan(loaded, operators, default_seed))
    spec = loaded.spec
    kv: tuple[KvLayer, ...] = ()
    while True:
        match orders.recv():
            case AllocateKv(pages=pages):
                kv = operators.allocate_kv(spec.layers, pages, engine.page_tokens, spec.heads)
            case Forward() as order:
                batch = _batch(order)
                decoder.forward(spec, loaded.weights, operators, batch, kv, loaded.rope)
                join_faults(group, batch.row_faults)
            case Logits(hidden=hidden):
                decoder.logits(spec, loaded.weights, operators, torch.from_numpy(hidden))
            case Stop():
                return


def _batch(order: Forward) -> RaggedBatch:
    return RaggedBatch(
        token_ids=torch.from_numpy(order.token_ids),
        positions=torch.from_numpy(order.positions),
        slots=torch.from_numpy(order.slots),
        query_start=torch.from_numpy(order.query_start),
        page_table=torch.from_numpy(order.page_table),
        page_tokens=order.page_tokens,
        row_faults=torch.zeros(order.token_ids.shape[0], dtype=torch.uint8),
    )
