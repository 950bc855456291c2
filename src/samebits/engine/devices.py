"""Which GPUs a replica of `--data-parallel` takes: as many as it has ranks, those of the replicas one after another."""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping, Sequence

from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The driver shows a process no other GPUs than this variable names, if it is set before the first of them is used."""


def share_of(visible: Sequence[str], replica: int, replicas: int, degree: int) -> list[str]:
    """The names of a replica's GPUs. Raises `ConfigError` where there are too few for all replicas."""
    if len(visible) < replicas * degree:
        raise ConfigError(
            f"--data-parallel {replicas} with --tensor-parallel {degree} takes {replicas * degree} GPUs, and torch "
            f"finds {len(visible)} here"
        )
    return list(visible[replica * degree : (replica + 1) * degree])


def take_devices(
    model: ModelConfig,
    engine: EngineConfig,
    replica: int,
    count: Callable[[], int],
    environment: MutableMapping[str, str] = os.environ,
) -> None:
    """Show this process, which has used no GPU yet, those of its replica alone. `count` says how many there are; where
    there is none, nothing is done. Raises `ConfigError` for too few."""
    if engine.data_parallel == 1 or model.device == "cpu" or not (there := count()):
        return
    named = environment.get(VISIBLE, "")
    visible = [name.strip() for name in named.split(",")][:there] if named else [str(i) for i in range(there)]
    own = share_of(visible, replica, engine.data_parallel, model.tensor_parallel)
    environment[VISIBLE] = ",".join(own)
    if count() != len(own):
        raise ConfigError(
            f"--data-parallel {engine.data_parallel}: this machine's driver does not follow {VISIBLE}; start a server "
            "for each replica"
        )
