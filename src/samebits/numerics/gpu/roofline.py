"""What the device can do at best, measured, and the share of it that a kernel reaches."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

READ_BYTES = 2 << 30
MATRIX = 8192
REPEATS = 7


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of a device."""

    bytes_per_second: float
    """of reading memory"""
    operations_per_second: float
    """of a large bf16 matrix product"""

    def share(self, seconds: float, moved: int, operations: int) -> float:
        """The least time that the work takes at these rates, over the time it took."""
        return self.least_seconds(moved, operations) / seconds if seconds else 0.0

    def least_seconds(self, moved: int, operations: int) -> float:
        return max(moved / self.bytes_per_second, operations / self.operations_per_second)

    def as_dict(self) -> dict[str, float]:
        return {
            "bytes_per_second": self.bytes_per_second,
            "operations_per_second": self.operations_per_second,
        }


def measure_ceilings(device: torch.device) -> Ceilings:
    """Median rates of a read of 2 GiB and of a bf16 product of 8192 cubed on random data."""
    free, _ = torch.cuda.mem_get_info(device)
    size = min(READ_BYTES, free // 4) // 8 * 8
    source = torch.zeros(size // 8, dtype=torch.int64, device=device)
    reading = _median_seconds(source.sum)
    del source
    left = torch.randn(MATRIX, MATRIX, device=device).bfloat16()
    right = torch.randn(MATRIX, MATRIX, device=device).bfloat16()
    product = torch.empty_like(left)
    multiplying = _median_seconds(lambda: torch.mm(left, right.T, out=product))
    return Ceilings(size / reading, 2 * MATRIX**3 / multiplying)


def _median_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)
