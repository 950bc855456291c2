"""How a model is cut over ranks: which degrees are refused and why, and which heads and rows a rank holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samebits.config import ModelConfig
from samebits.errors import UnsupportedModelError
from samebits.models.load import read_model_files
from samebits.models.shards import ModelShard
from samebits.models.spec import ModelSpec
from samebits.numerics.contract import CONTRACT
from samebits.numerics.operators import HeadLayout
from samebits.numerics.vocabulary import shard_rows


def spec_of(heads: int, kv_heads: int, intermediate: int = 256) -> ModelSpec:
    spec = read_model_files(ModelConfig(model="tiny", load_format="dummy")).spec
    return replace(spec, heads=HeadLayout(heads, kv_heads, 32), intermediate=intermediate)


@pytest.mark.parametrize(
    ("size", "spec", "reason"),
    [
        (3, spec_of(4, 2), "its 4 query heads"),
        (4, spec_of(12, 6), "its 6 key-value heads, which can neither be split nor repeated"),
        (4, spec_of(4, 4, 250), "its MLP width of 250"),
    ],
)
def test_a_degree_that_divides_no_model_is_refused_with_the_reason(
    size: int, spec: ModelSpec, reason: str
) -> None:
    with pytest.raises(
        UnsupportedModelError, match=f"--tensor-parallel {size} does not divide this model: .*{reason}"
    ):
        ModelShard(0, size).check(spec)
    ModelShard(0, 2).check(spec)


@pytest.mark.parametrize(
    ("size", "held"), [(1, [[0, 1]]), (2, [[0], [1]]), (4, [[0], [0], [1], [1]]), (8, [[0]] * 4 + [[1]] * 4)]
)
def test_ranks_hold_the_key_value_heads_of_their_query_heads(size: int, held: list[list[int]]) -> None:
    """With fewer heads than ranks, neighbouring ranks hold the same one."""
    heads = HeadLayout(8, 2, 32)
    rows = torch.arange(2 * 32)
    for rank in range(size):
        shard = ModelShard(rank, size)
        assert (shard.kv_rows(rows, heads).view(-1, 32)[:, 0] // 32).tolist() == held[rank]
        queries = shard.rows(torch.arange(8)).tolist()
        assert {query // 4 for query in queries} == set(held[rank])
        assert shard.spec(spec_of(8, 2)).heads == HeadLayout(8 // size, len(held[rank]), 32)


@pytest.mark.parametrize("vocabulary", [1000, 1283, 151_936, 128_256, 32_001])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_shard_of_the_vocabulary_is_whole_blocks_of_log_sum_exp(vocabulary: int, size: int) -> None:
    rows = shard_rows(vocabulary, size)
    assert rows % CONTRACT.vocabulary_block == 0
    assert rows * size >= vocabulary > (rows - CONTRACT.vocabulary_block) * size
    table = torch.arange(1, vocabulary + 1)[:, None]
    held = torch.cat([ModelShard(rank, size).vocabulary(table) for rank in range(size)])
    assert torch.equal(held[:vocabulary], table) and not held[vocabulary:].any()
