"""The profile `torch` against float64 formulas and the slow sampling reference: it must mean the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sampling_reference import make_batch, reference_sample
from test_sampling import SETTINGS, VOCABULARY, random_logits

from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import HeadLayout, KvLayer, Operators
from samebits.numerics.torch_profile.operators import TorchOperators, torch_operators

HEADS = HeadLayout(query_heads=4, kv_heads=2, head_dim=16)
PAGE = 64
OPERATORS = torch_operators(torch.device("cpu"), torch.bfloat16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged(lengths: list[tuple[int, int]], pages_each: int) -> RaggedBatch:
    """Requests with (first position, rows) each, on scattered pages."""
    table = torch.arange(len(lengths) * pages_each, dtype=torch.int32).flip(0).view(len(lengths), -1)
    positions = torch.cat([torch.arange(first, first + rows) for first, rows in lengths])
    owner = torch.cat([torch.full((rows,), index) for index, (_, rows) in enumerate(lengths)])
    slots = table[owner, positions // PAGE].long() * PAGE + positions % PAGE
    return RaggedBatch(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        slots=slots,
        query_start=torch.tensor(np.cumsum([0] + [rows for _, rows in lengths]), dtype=torch.int32),
        page_table=table,
        page_tokens=PAGE,
        row_faults=torch.zeros(len(positions), dtype=torch.uint8),
    )


def rope_table(positions: int, half: int) -> torch.Tensor:
    angle = torch.arange(positions)[:, None] * (10000.0 ** (-torch.arange(half) / half))
    return torch.stack((angle.cos(), angle.sin()), dim=1)


def store(
    qkv: torch.Tensor, batch: RaggedBatch, kv: KvLayer, norm: torch.Tensor | None = None
) -> torch.Tensor:
    return OPERATORS.norm_rope_store(qkv, HEADS, norm, norm, 1e-6, rope_table(512, 8), batch, kv)


def test_it_is_an_operators() -> None:
    operators: Operators = OPERATORS
    assert isinstance(operators, TorchOperators)
    assert (operators.profile, operators.promises_bits) == ("torch", False)
    assert operators.probe_digests([torch.bfloat16]) == {}
    assert torch_operators(torch.device("cuda"), torch.bfloat16).activation_dtype == torch.bfloat16


def test_linear_norm_and_activation_agree_with_float64() -> None:
    """Bounds: 512 float32 additions of terms of size 1, and a few roundings for the others."""
    x, weight, bias = normal(5, 512), normal(64, 512, seed=1).bfloat16(), normal(64, seed=2)
    packed = OPERATORS.pack_linear(weight, bias)
    assert (packed.in_features, packed.out_features) == (512, 64)
    exact = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(OPERATORS.linear(x, packed).double(), exact, rtol=0, atol=2e-4)
    scale = normal(512, seed=3)
    total = x + 0.5
    exact = total.double() * (total.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * scale.double()
    normed, residual = OPERATORS.add_rms_norm(x, torch.full_like(x, 0.5), scale, 1e-6)
    torch.testing.assert_close(normed.double(), exact, rtol=2e-6, atol=1e-6)
    assert torch.equal(residual, total)
    gate, up = x.double().chunk(2, -1)
    torch.testing.assert_close(
        OPERATORS.silu_mul(x).double(), gate * torch.sigmoid(gate) * up, rtol=2e-6, atol=1e-6
    )


def exact_attention(qkv: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """One whole request in float64. qkv [rows, width] -> [rows, query width]."""
    rows = qkv.shape[0]
    heads = qkv.double().view(rows, -1, HEADS.head_dim)
    q, k, v = heads.split([HEADS.query_heads, HEADS.kv_heads, HEADS.kv_heads], dim=1)
    cos, sin = rope_table(512, 8)[:rows].double().unbind(1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        x = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.double()
        a, b = x.chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat((a * c - b * s, b * c + a * s), -1)

    output = torch.empty(rows, HEADS.query_heads, HEADS.head_dim, dtype=torch.float64)
    q, k = turned(q), turned(k)
    for head in range(HEADS.query_heads):
        scores = q[:, head] @ k[:, head // 2].T * 0.25
        scores = scores.masked_fill(torch.ones(rows, rows).triu(1) > 0, -math.inf)
        output[:, head] = scores.softmax(-1) @ v[:, head // 2]
    return output.flatten(1)


def test_attention_over_pages_and_chunks_agrees_with_float64() -> None:
    """Two requests over scattered pages, in one step and in chunks; bound 2e-5 for values of size 1."""
    norm = normal(16, seed=9) * 0.2 + 1.0
    qkv = [normal(length, HEADS.query_width + 2 * HEADS.kv_width, seed=length) for length in (150, 70)]
    exact = [exact_attention(x, norm) for x in qkv]
    (kv,) = OPERATORS.allocate_kv(1, 6, PAGE, HEADS)
    done = [0, 0]
    for chunk in ((60, 1), (1, 0), (89, 69)):
        batch = ragged([(done[i], chunk[i]) for i in range(2)], 3)
        rows = torch.cat([qkv[i][done[i] : done[i] + chunk[i]] for i in range(2)])
        result = OPERATORS.attention(store(rows, batch, kv, norm), HEADS, 0.25, batch, kv)
        wanted = torch.cat([exact[i][done[i] : done[i] + chunk[i]] for i in range(2)])
        torch.testing.assert_close(result.double(), wanted, rtol=0, atol=2e-5)
        done = [done[i] + chunk[i] for i in range(2)]


@pytest.mark.parametrize("lane", [HEADS.query_width, HEADS.query_width + HEADS.kv_width + 3])
def test_a_non_finite_key_or_value_is_stored_as_zero_and_reported(lane: int) -> None:
    qkv = normal(3, HEADS.query_width + 2 * HEADS.kv_width)
    qkv[1, lane] = math.inf
    batch = ragged([(0, 3)], 1)
    (kv,) = OPERATORS.allocate_kv(1, 1, PAGE, HEADS)
    store(qkv, batch, kv)
    assert batch.row_faults.tolist() == [0, 1, 0]
    assert not kv.keys[0, 1].any() and not kv.values[0, 1].any()
    assert kv.keys[0, 2].any()


@pytest.mark.parametrize("seed", range(4, 8))
def test_sampling_means_what_the_clause_says(seed: int) -> None:
    logits = random_logits(len(SETTINGS), seed)
    result = OPERATORS.sample(logits, make_batch(SETTINGS, VOCABULARY), True)
    expected = reference_sample(logits, SETTINGS, True)
    assert result.token_ids.tolist() == expected.token_ids.tolist()
    assert result.faults.tolist() == expected.faults.tolist()
    assert result.processed_logprobs is not None and expected.processed_logprobs is not None
    torch.testing.assert_close(result.processed_logprobs, expected.processed_logprobs, rtol=2e-6, atol=2e-6)


def test_reported_logprobs_agree_with_float64() -> None:
    logits = random_logits(3)
    lse = OPERATORS.log_sum_exp(logits)
    ids, values = OPERATORS.top_tokens(logits, 4)
    logprobs = OPERATORS.token_logprobs(logits, lse, torch.arange(3), ids[:, 0])
    exact = logits.double().log_softmax(-1).max(-1).values
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=2e-6)
    assert torch.equal(values[:, 0], logits.max(-1).values)
