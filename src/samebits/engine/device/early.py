"""Setting up the GPU while torch is still imported, which takes longer and needs Python's lock: torch finds the context
there that it would make.
"""

from __future__ import annotations

import ctypes
import os
import threading
from importlib.util import find_spec

from samebits.config import EngineConfig, ModelConfig

DRIVER = "libcuda.so.1"


def open_early(model: ModelConfig, engine: EngineConfig) -> threading.Thread | None:
    """Begin to make the context of the GPU that this process, an engine's or rank 0's, will take; None where it takes
    none, or where that is settled later. A driver that refuses is met again, and named, by torch."""
    if model.device == "cpu" or engine.data_parallel > 1 or find_spec("triton") is None:
        return None
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch does, before the driver looks
    thread = threading.Thread(target=_make_context, args=(driver,), name="samebits-context", daemon=True)
    thread.start()
    return thread


def _make_context(driver: ctypes.CDLL) -> None:
    """Of the first visible device; kept until this process ends."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
