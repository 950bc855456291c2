"""Which implementation serves a numerics profile on a device. What does not exist is refused, never approximated."""

from __future__ import annotations

import torch

from samebits.errors import NumericsError
from samebits.numerics.operators import Operators


def choose_device(device: str) -> torch.device:
    """`auto` is the CPU: the proven kernels of this version run there."""
    return torch.device("cpu" if device == "auto" else device)


def make_operators(profile: str, device: str = "auto", threads: int = 0) -> Operators:
    """The operators of a profile on a device.

    `threads` is for the CPU (0: one a core). Raises `NumericsError` when the pair does not exist.
    """
    place = choose_device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise NumericsError("--device cuda: this machine has no CUDA device that torch can use")
    if profile == "torch":
        from samebits.numerics.torch_profile.operators import TorchOperators

        return TorchOperators(place, torch.float32 if place.type == "cpu" else torch.bfloat16)
    if profile == "exact" and place.type == "cpu":
        from samebits.numerics.cpu.operators import CpuOperators

        return CpuOperators(threads=threads)
    raise NumericsError(
        f"--numerics {profile} has no proven kernels on {place.type}; "
        "this version offers 'exact' on cpu, and 'torch' (which promises nothing) on cpu and cuda"
    )
