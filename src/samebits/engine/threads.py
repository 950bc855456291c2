"""How many threads an engine's process takes. Known to the server too, which loads no numerics."""

from __future__ import annotations

import os


def default_threads(size: int) -> int:
    """Threads of one of `size` ranks that share this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // size)
