"""Clock and power of a GPU while something else runs: of a card at its limit, a figure says little without them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch

INTERVAL_SECONDS = 0.2

Read = Callable[[], tuple[float, float]]
"""(clock of the multiprocessors in MHz, power in W), now"""


@dataclass
class Readings:
    """What was read so far; empty where the driver's library for Python (nvidia-ml-py) is not installed."""

    clocks: list[float] = field(default_factory=list)
    powers: list[float] = field(default_factory=list)

    def facts(self) -> dict[str, float]:
        """Medians, for a result; nothing where nothing was read."""
        if not self.clocks:
            return {}
        return {"median MHz": median(self.clocks), "median W": round(median(self.powers), 1)}


def read_device() -> tuple[float, float]:
    """Of the current GPU. Raises what torch raises where it cannot tell."""
    return float(torch.cuda.clock_rate()), torch.cuda.power_draw() / 1e3


@contextmanager
def gauged(read: Read = read_device, interval: float = INTERVAL_SECONDS) -> Iterator[Readings]:
    """Read clock and power now and then, in a thread of its own, until the block ends."""
    readings = Readings()
    ended = threading.Event()

    def watch() -> None:
        while True:
            try:
                clock, power = read()
            except (
                Exception
            ):  # whatever the driver's library raises, or its absence: figures stand without readings
                return
            readings.clocks.append(clock)
            readings.powers.append(power)
            if ended.wait(interval):
                return

    thread = threading.Thread(target=watch, name="gauge", daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        ended.set()
        thread.join()
