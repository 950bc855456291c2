"""The key of a proof: what may change which machine code runs, or what it computes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path

import torch

from samebits.numerics.contract import constants
from samebits.numerics.cpu import coefficients

SOURCES = Path(__file__).parent
COEFFICIENTS = Path(coefficients.__file__)


def device_key(device: torch.device) -> dict[str, str]:
    """Device, driver, versions, contract and kernel sources, by name."""
    import triton

    facts = torch.cuda.get_device_properties(device)
    return {
        "device": facts.name,
        "multiprocessors": str(facts.multi_processor_count),
        "architecture": facts.gcnArchName if torch.version.hip else f"sm_{facts.major}{facts.minor}",
        "memory": str(facts.total_memory),
        "driver": driver_version(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "triton": triton.__version__,
        "cublaslt": _library_version(),
        "contract": " ".join(f"{name}={value}" for name, value in sorted(constants().items())),
        "sources": source_digest(),
    }


def _library_version() -> str:
    if torch.version.cuda is None:
        return "none"
    from samebits.numerics.gpu import cublaslt

    return cublaslt.version()


@functools.cache
def source_digest() -> str:
    """Digest of every file that a kernel, a case or a comparison is made of."""
    digest = hashlib.sha256()
    for path in [*sorted(SOURCES.glob("*.py")), COEFFICIENTS]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


@functools.cache
def driver_version() -> str:
    """The kernel driver's version, as NVML tells it; `unknown` without NVML."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "unknown"
    text = ctypes.create_string_buffer(80)
    if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))):
        return "unknown"
    return text.value.decode()
