"""Constants of the numerics contract. `contract.md` holds the clauses; a change here is a change of its version.

Every constant enters the plan's fingerprint. None of them may depend on the batch, the machine's memory or
its number of cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

CONTRACT_VERSION = 1


@dataclass(frozen=True)
class Contract:
    """The numbers that the clauses name."""

    version: int = CONTRACT_VERSION
    split_tokens: int = 256
    """Attention: KV is cut at absolute positions into splits of this many keys."""
    key_block_tokens: int = 64
    """Attention: keys of one rescaling step inside a split, ascending."""
    reduction_lanes: int = 16
    """Norm, attention row sum, log-sum-exp: element i is added to lane i mod 16; lanes fold by halving."""
    device_reduction_lanes: int = 1024
    """The same on a GPU, but for the attention's row sum."""
    device_sum_lanes: int = 8
    """Attention row sum on a GPU: lanes that a key block's weights are halved to."""
    vocabulary_block: int = 1024
    """Log-sum-exp: token ids of one block; blocks fold in ascending order."""
    leaves: int = 8
    """`tp-invariant`: equal parts of K in a row-parallel GEMM."""


CONTRACT = Contract()


def constants() -> dict[str, int]:
    """The constants by name, for the fingerprint."""
    return asdict(CONTRACT)
