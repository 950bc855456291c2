"""Which implementation serves a numerics profile on a device. What does not exist is refused, never approximated."""

from __future__ import annotations

import torch

from samebits.errors import NumericsError
from samebits.numerics.collectives.group import SOLO, Group
from samebits.numerics.operators import Operators

CPU_PROFILES = ("exact", "tp-invariant")


def choose_device(device: str) -> torch.device:
    """`auto` is the CPU: the proven kernels of this version run there."""
    return torch.device("cpu" if device == "auto" else device)


def make_operators(profile: str, device: str = "auto", threads: int = 0, group: Group = SOLO) -> Operators:
    """The operators of a profile on a device, for one rank of `group`.

    `threads` is for the CPU (0: one a core). Raises `NumericsError` when the combination does not exist.
    """
    place = choose_device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise NumericsError("--device cuda: this machine has no CUDA device that torch can use")
    if profile in CPU_PROFILES and place.type == "cpu":
        from samebits.numerics.cpu.operators import CpuOperators

        return CpuOperators(threads=threads, profile=profile, group=group)
    if group.size > 1:
        raise NumericsError(
            f"--tensor-parallel {group.size}: --numerics {profile} runs on one rank on {place.type}; several ranks are "
            "for 'exact' and 'tp-invariant' on cpu"
        )
    if profile == "torch":
        from samebits.numerics.torch_profile.operators import TorchOperators

        return TorchOperators(place, torch.float32 if place.type == "cpu" else torch.bfloat16)
    raise NumericsError(
        f"--numerics {profile} has no proven kernels on {place.type}; this version offers 'exact' and 'tp-invariant' "
        "on cpu, and 'torch' (which promises nothing) on cpu and cuda"
    )
