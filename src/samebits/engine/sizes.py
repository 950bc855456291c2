"""Sizes that depend on the device: step, batch and KV pages, where the settings leave them open. None changes a bit."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, replace

import torch

from samebits.config import EngineConfig
from samebits.errors import ConfigError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu.buckets import USUAL_STEP, filling_step

MEBIBYTE = 1 << 20
CPU_STEP_TOKENS, CPU_MAX_RUNNING, CPU_KV_MIB = 512, 64, 1024
GPU_MAX_RUNNING = 256
MEMORY_FRACTION = 0.9

log = logging.getLogger(__name__)


def filled_in(engine: EngineConfig, multiprocessors: int, ranks: int = 1) -> EngineConfig:
    """The settings with the sizes of a step chosen for a GPU of so many multiprocessors, 0: for the CPU."""
    step_tokens, max_running = CPU_STEP_TOKENS, CPU_MAX_RUNNING
    if multiprocessors:
        # The rows of several ranks are dealt out in shares, which are whole tiles where a step is a power of two.
        step_tokens = filling_step(multiprocessors) if ranks == 1 else USUAL_STEP
        max_running = GPU_MAX_RUNNING
    return replace(
        engine,
        step_tokens=engine.step_tokens or step_tokens,
        max_running=engine.max_running or max_running,
    )


def multiprocessors_of(device: torch.device) -> int:
    """Of a GPU; 0 for the CPU."""
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 0


def check_sizes(engine: EngineConfig) -> None:
    """Raise `ConfigError` for sizes that no device could serve."""
    if engine.page_tokens <= 0 or engine.page_tokens % CONTRACT.key_block_tokens:
        raise ConfigError(
            f"--page-tokens must be a multiple of {CONTRACT.key_block_tokens}, got {engine.page_tokens}"
        )
    least_of = dict.fromkeys(
        ("kv_pages", "kv_memory_mib", "step_tokens", "max_running", "assumed_answer_tokens"), 0
    ) | {"max_waiting": 1}
    for name, least in least_of.items():
        if getattr(engine, name) < least:
            raise ConfigError(
                f"--{name.replace('_', '-')} must be at least {least}, got {getattr(engine, name)}"
            )
    if not 0 <= engine.memory_fraction < 1:
        raise ConfigError(f"--memory-fraction must lie in [0, 1), got {engine.memory_fraction}")
    if engine.cuda_graph_max_bs < -1:
        raise ConfigError(f"--cuda-graph-max-bs must be at least -1, got {engine.cuda_graph_max_bs}")


def log_idle_settings(engine: EngineConfig) -> None:
    """Say which settings of a GPU were given to an engine that runs on the CPU."""
    if engine.cuda_graph_max_bs != EngineConfig.cuda_graph_max_bs:
        log.info("--cuda-graph-max-bs has no effect: there are no CUDA graphs on a CPU")
    if engine.all_reduce != EngineConfig.all_reduce:
        log.info("--all-reduce has no effect: ranks on a CPU gather all parts and add them")
    if engine.ranks_per_gpu != EngineConfig.ranks_per_gpu:
        log.info("--ranks-per-gpu has no effect: ranks on a CPU share it anyway")
    if engine.memory_fraction:
        log.info(
            "--memory-fraction is of a GPU's memory and has no effect: KV pages get --kv-memory-mib = %d",
            engine.kv_memory_mib or CPU_KV_MIB,
        )


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a GPU in bytes, after the weights were loaded."""

    free: int
    total: int
    ours: int = 0
    """what this process holds of it"""

    def __str__(self) -> str:
        others = self.total - self.free - self.ours
        return (
            f"of {_mib(self.total)} on the card {_mib(self.free)} are free, this process holds {_mib(self.ours)} and "
            f"others {_mib(others)}"
        )


def device_memory(device: torch.device) -> DeviceMemory:
    """What is free now, with what an engine before this one left behind given back."""
    gc.collect()
    torch.cuda.empty_cache()
    return DeviceMemory(*torch.cuda.mem_get_info(device), torch.cuda.memory_reserved(device))


def kv_page_count(engine: EngineConfig, bytes_per_page: int, memory: DeviceMemory | None) -> int:
    """KV pages for requests; `memory` is None on the CPU. Raises `ConfigError` where not one fits."""
    if engine.kv_pages:
        return engine.kv_pages
    if memory is None or (engine.kv_memory_mib and not engine.memory_fraction):
        mebibytes = engine.kv_memory_mib or CPU_KV_MIB
        pages = mebibytes * MEBIBYTE // bytes_per_page
        if pages < 1:
            raise ConfigError(
                f"--kv-memory-mib={mebibytes} is too small for one KV page of this model, {_mib(bytes_per_page)}"
            )
        return pages
    fraction = engine.memory_fraction or MEMORY_FRACTION
    budget = int(memory.total * fraction) - (memory.total - memory.free)
    pages = budget // bytes_per_page - 1  # one more is for padding rows
    if pages < 1:
        raise ConfigError(
            f"--memory-fraction={fraction:g} of the card, {_mib(int(memory.total * fraction))}, leaves no room for "
            f"KV pages of {_mib(bytes_per_page)}: {memory}. Raise --memory-fraction, or give pages their memory by "
            "--kv-memory-mib, which does not count what others hold"
        )
    return pages


def _mib(size: int) -> str:
    return f"{-(-size // MEBIBYTE)} MiB"
