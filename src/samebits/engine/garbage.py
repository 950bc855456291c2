"""What Python's garbage collector looks at, in processes that keep nearly all that they make while they start."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def import_for_good(name: str) -> ModuleType:
    """Import a module and let the collector leave alone what that made: to look through it again and again takes a
    fifth of the time that it takes to import torch."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def settle() -> None:
    """Let the collector leave alone what this process keeps for ever (code, vocabulary), and look at the rest less
    often: next to nothing in a request is cyclic."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
