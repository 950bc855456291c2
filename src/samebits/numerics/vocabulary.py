"""The vocabulary over ranks: each holds a whole number of log-sum-exp blocks, the last ones padded with zeros.

Nothing is added across ranks: a token's embedding and its logit belong to one rank, and travel as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.numerics.collectives.group import Group
from samebits.numerics.contract import CONTRACT
from samebits.numerics.operators import PackedLinear


@dataclass(frozen=True)
class VocabularyLinear:
    """One rank's rows of the output matrix, padding among them, and the vocabulary of the whole."""

    shard: PackedLinear
    vocabulary: int

    @property
    def in_features(self) -> int:
        return self.shard.in_features

    @property
    def out_features(self) -> int:
        return self.vocabulary


def shard_rows(vocabulary: int, size: int) -> int:
    """Rows that every one of `size` ranks holds."""
    blocks = -(-vocabulary // CONTRACT.vocabulary_block)
    return -(-blocks // size) * CONTRACT.vocabulary_block


def join_logits(group: Group, logits: Tensor, vocabulary: int) -> Tensor:
    """A rank's float32 logits [rows, shard rows] -> those of all ranks [rows, vocabulary]."""
    shards = group.all_gather(logits)
    return shards.transpose(0, 1).reshape(logits.shape[0], -1)[:, :vocabulary].contiguous()


def embed_over_ranks(group: Group, token_ids: Tensor, rows: int, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Embeddings of `token_ids` where each rank holds `rows` of the table; `embed` looks up this rank's own rows."""
    owner = token_ids // rows
    own = torch.where(owner == group.rank, token_ids - group.rank * rows, 0)
    gathered = group.all_gather(embed(own))
    return gathered[owner, torch.arange(token_ids.shape[0], device=token_ids.device)]
