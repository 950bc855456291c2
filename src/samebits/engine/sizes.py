"""Sizes that depend on the device: step, batch and KV pages, where the settings leave them open. None changes a bit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from samebits.config import EngineConfig
from samebits.errors import ConfigError

MEBIBYTE = 1 << 20
CPU_STEP_TOKENS, CPU_MAX_RUNNING, CPU_KV_MIB = 512, 64, 1024
GPU_STEP_TOKENS, GPU_MAX_RUNNING = 8192, 256


def filled_in(engine: EngineConfig, device: torch.device) -> EngineConfig:
    """The settings with the sizes of a step chosen for the device."""
    on_gpu = device.type == "cuda"
    return replace(
        engine,
        step_tokens=engine.step_tokens or (GPU_STEP_TOKENS if on_gpu else CPU_STEP_TOKENS),
        max_running=engine.max_running or (GPU_MAX_RUNNING if on_gpu else CPU_MAX_RUNNING),
    )


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a GPU in bytes, after the weights were loaded."""

    free: int
    total: int


def device_memory(device: torch.device) -> DeviceMemory:
    """What is free now, with torch's own unused blocks given back."""
    torch.cuda.empty_cache()
    return DeviceMemory(*torch.cuda.mem_get_info(device))


def kv_page_count(engine: EngineConfig, bytes_per_page: int, memory: DeviceMemory | None) -> int:
    """KV pages for requests; `memory` is None on the CPU. Raises `ConfigError` where not one fits."""
    if engine.kv_pages:
        return engine.kv_pages
    if engine.kv_memory_mib or memory is None:
        budget = (engine.kv_memory_mib or CPU_KV_MIB) * MEBIBYTE
        pages, remedy = budget // bytes_per_page, "--kv-memory-mib is too small"
    else:
        budget = int(memory.total * engine.mem_fraction_static) - (memory.total - memory.free)
        # One page more is for padding rows.
        pages, remedy = budget // bytes_per_page - 1, "the weights leave too little of --mem-fraction-static"
    if pages < 1:
        raise ConfigError(f"{remedy} for one KV page of this model; give it more")
    return pages
