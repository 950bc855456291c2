"""Which implementation serves a numerics profile on a device. What does not exist is refused, never approximated."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from samebits.errors import NumericsError
from samebits.numerics.collectives.group import SOLO, Group
from samebits.numerics.contract import CONTRACT
from samebits.numerics.operators import Operators

CPU_PROFILES = ("exact", "tp-invariant")
GPU_PROFILES = ("exact", "tp-invariant", "unpinned")


def choose_device(device: str) -> torch.device:
    """`auto` is the GPU where torch can use one and Triton is there to compile for it, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and find_spec("triton") else "cpu"
    return torch.device(device)


def make_operators(
    profile: str,
    device: str = "auto",
    threads: int = 0,
    group: Group = SOLO,
    dtype: torch.dtype = torch.bfloat16,
    split_tokens: int = 0,
) -> Operators:
    """The operators of a profile on a device, for one rank of `group`.

    `threads` is for the CPU (0: one a core); `dtype` is the weights', in which a GPU keeps its activations;
    `split_tokens` is the attention's split (0: the contract's). Raises `NumericsError` when the combination does not
    exist.
    """
    place = choose_device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise NumericsError("--device cuda: this machine has no CUDA device that torch can use")
    if split_tokens < 0 or split_tokens % CONTRACT.key_block_tokens:
        raise NumericsError(
            f"--attention-split-tokens must be a multiple of {CONTRACT.key_block_tokens}, got {split_tokens}"
        )
    if profile in GPU_PROFILES and place.type == "cuda":
        return _gpu_operators(profile, place, group, dtype, split_tokens or CONTRACT.split_tokens)
    if split_tokens not in (0, CONTRACT.split_tokens):
        raise NumericsError(
            f"--attention-split-tokens {split_tokens}: the splits of this profile on {place.type} hold "
            f"{CONTRACT.split_tokens} keys"
        )
    if profile in CPU_PROFILES and place.type == "cpu":
        from samebits.numerics.cpu.operators import CpuOperators

        return CpuOperators(threads=threads, profile=profile, group=group)
    if group.size > 1:
        raise NumericsError(
            f"--tensor-parallel {group.size}: --numerics {profile} runs on one rank on {place.type}; several ranks are "
            "for 'exact' and 'tp-invariant', and for 'unpinned' on cuda"
        )
    if profile == "torch":
        from samebits.numerics.torch_profile.operators import torch_operators

        return torch_operators(place, dtype)
    raise NumericsError(
        f"--numerics {profile} has no proven kernels on {place.type}; this version offers 'exact' and "
        "'tp-invariant' on cpu and cuda, and, without any promise, 'torch' on both and 'unpinned' on cuda"
    )


def _gpu_operators(
    profile: str, device: torch.device, group: Group, dtype: torch.dtype, split_tokens: int
) -> Operators:
    """One rank's operators, on the GPU of its group."""
    from samebits.numerics.gpu.operators import make_gpu_operators
    from samebits.numerics.gpu.rank_group import GatheringGroup, PeerGroup

    if group.size == 1:
        return make_gpu_operators(profile, device, dtype, split_tokens)
    if not isinstance(group, PeerGroup | GatheringGroup):
        raise NumericsError(f"ranks on GPUs need a group that adds there, not a {type(group).__name__}")
    return make_gpu_operators(profile, group.device, dtype, split_tokens, group)
