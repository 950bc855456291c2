"""Clauses of one row without a matrix: norm, gated activation, log-sum-exp, embedding, rotation and store."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_arithmetic import F32, exp32, fma32, fold_lanes, log_sum_exp, rms_norm, rotate, silu_mul
from numerics_cases import EPS, differing, make_batch, make_context, same_bits

from samebits.errors import NumericsError
from samebits.numerics import reference
from samebits.numerics.adversarial import hashed_floats, wide_rows
from samebits.numerics.cpu.kernel import compiled
from samebits.numerics.cpu.lanes import load, store
from samebits.numerics.cpu.math import exp32 as kernel_exp32
from samebits.numerics.cpu.math import log32 as kernel_log32
from samebits.numerics.operators import HeadLayout

POISONS = (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45)


@compiled
def log_many(x, y):
    for i in range(x.size):
        y[i] = kernel_log32(x[i])


def kernel_log(x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    log_many(x, y)
    return y


def row_operators(operators):
    """name -> function of a matrix [rows, 400] -> matrix or vector, one for each row operator."""
    weight = wide_rows(50, 1, 400, 2)[0]
    return {
        "norm": lambda x: operators.rms_norm(x, weight, EPS),
        "add and norm": lambda x: torch.cat(
            operators.add_rms_norm(x, x.flip(1).contiguous(), weight, EPS), 1
        ),
        "gated activation": operators.silu_mul,
        "log-sum-exp": lambda x: operators.log_sum_exp(x)[:, None],
    }


ROW_OPERATORS = ("norm", "add and norm", "gated activation", "log-sum-exp")


@pytest.mark.parametrize("name", ROW_OPERATORS)
def test_rows_do_not_know_each_other(operators, single, crowded, name) -> None:
    x = wide_rows(51, 70, 400, 4)
    alone_of = row_operators(single)[name]
    alone = torch.cat([alone_of(x[row : row + 1].contiguous()) for row in range(70)])
    assert differing(alone[1:], alone[:-1]) > 60
    for engine in (operators, crowded):
        function = row_operators(engine)[name]
        for rows in range(1, 71):
            assert same_bits(function(x[:rows].contiguous()), alone[:rows]), rows
        assert same_bits(function(x.flip(0).contiguous()), alone.flip(0))
        for poison in POISONS:
            changed = x.clone()
            changed[1::2] = poison
            assert same_bits(function(changed)[::2].contiguous(), alone[::2].contiguous()), poison


@pytest.mark.parametrize("width", [1, 15, 16, 33, 64, 384, 400, 1030])
def test_norm_is_the_written_clause(operators, width) -> None:
    x, residual, weight = wide_rows(52, 6, width), wide_rows(53, 6, width), wide_rows(54, 1, width, 2)[0]
    got = operators.rms_norm(x, weight, EPS)
    assert same_bits(got, rms_norm(x.numpy(), weight.numpy(), EPS))
    normed, total = operators.add_rms_norm(x, residual, weight, EPS)
    assert same_bits(total, x.numpy() + residual.numpy())
    assert same_bits(normed, rms_norm(x.numpy() + residual.numpy(), weight.numpy(), EPS))
    assert (reference.rms_norm(x, weight, EPS) - got).abs().max() <= (
        (width / 32 + 10) * reference.ROUNDING * reference.rms_norm(x, weight, EPS).abs().max()
    )


def test_wrong_norms_are_noticed(operators) -> None:
    x, weight = wide_rows(55, 40, 384, 3), wide_rows(56, 1, 384, 2)[0]
    got = operators.rms_norm(x, weight, EPS)
    rows, scale = x.numpy(), weight.numpy()
    for lanes in (1, 4, 8, 32):
        assert differing(got, rms_norm(rows, scale, EPS, lanes)) > 0, lanes
    squares = np.zeros((40, 16), F32)
    for i in range(384):
        squares[:, i % 16] += rows[:, i] * rows[:, i]
    mean = fold_lanes(squares) / F32(384)
    unfused = scale * (rows * (F32(1) / np.sqrt(mean + F32(EPS)))[:, None])
    assert differing(got, unfused) > 0
    blocked = np.zeros((40, 16), F32)
    for i in range(384):
        blocked[:, i // 24] = fma32(rows[:, i], rows[:, i], blocked[:, i // 24])
    mean = fold_lanes(blocked) / F32(384)
    assert differing(got, scale * (rows * (F32(1) / np.sqrt(mean + F32(EPS)))[:, None])) > 0


def test_gated_activation_is_the_written_clause(operators) -> None:
    x = wide_rows(57, 9, 2 * 210, 7)
    got = operators.silu_mul(x)
    gate, up = x.numpy()[:, :210], x.numpy()[:, 210:]
    assert same_bits(got, silu_mul(gate, up))
    with np.errstate(over="ignore"):
        library = (gate / (F32(1) + np.exp(-gate)) * up).astype(F32)
    assert differing(got, library) > 0
    expected = reference.silu_mul(x)
    # Below -88.7 the exponential is infinite and the result zero, where 89 exp(-88.7) is 3e-37.
    assert (
        (got - expected).abs() <= 6 * reference.ROUNDING * expected.abs() + 3e-37 * x[:, 210:].abs()
    ).all()


@pytest.mark.parametrize("vocabulary", [1, 16, 1000, 1024, 1025, 5000])
def test_log_sum_exp_is_the_written_clause(operators, vocabulary) -> None:
    x = wide_rows(58, 6, vocabulary, 4)
    x[0] = 0.0
    x[1, ::2] = -float("inf")
    got = operators.log_sum_exp(x)
    assert same_bits(got, log_sum_exp(x.numpy(), kernel_log))
    error = (got.double() - reference.log_sum_exp(x)).abs()
    bound = (vocabulary / 16 + 10) * reference.ROUNDING + 2 * reference.ROUNDING * got.abs()
    assert (error <= bound)[torch.isfinite(got)].all()


def test_wrong_log_sum_exps_are_noticed(operators) -> None:
    x = wide_rows(59, 64, 5000, 2)
    got = operators.log_sum_exp(x)
    assert differing(got, log_sum_exp(x.numpy(), kernel_log, block=512)) > 0
    assert differing(got, log_sum_exp(x.numpy(), kernel_log, block=8192)) > 0
    assert differing(got, log_sum_exp(x.numpy(), kernel_log, lanes=8)) > 0


def test_log_sum_exp_of_extremes(operators) -> None:
    infinity = float("inf")
    x = torch.zeros(6, 2000)
    x[0] = -infinity
    x[1, 1999] = infinity
    x[2, 0] = float("nan")
    x[3, 1500] = float("nan")
    x[4, :1024] = -infinity
    x[5] = -3e38
    got = operators.log_sum_exp(x)
    assert got[0] == -infinity and torch.isnan(got[1:4]).all()
    assert same_bits(got[4:5], operators.log_sum_exp(x[4:5, 1024:].contiguous()))
    assert got[5] == np.float32(-3e38)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_embedding_is_exact(operators, dtype) -> None:
    table = wide_rows(60, 50, 96).to(dtype)
    ids = torch.tensor([49, 0, 7, 7, 31] * 40)
    assert same_bits(operators.embed(ids, table), table[ids].float())
    with pytest.raises(NumericsError, match="token ids"):
        operators.embed(torch.tensor([3, 50]), table)
    with pytest.raises(NumericsError, match="token ids"):
        operators.embed(torch.tensor([-1]), table)


def test_subnormal_weights_widen_exactly(operators) -> None:
    """Subnormal bf16 and fp16 are float32 numbers, and stay them."""
    for dtype in (torch.bfloat16, torch.float16):
        words = torch.arange(1, 65, dtype=torch.int16).view(dtype)
        table = words[None].repeat(2, 1).contiguous()
        assert same_bits(operators.embed(torch.tensor([1]), table), table[:1].float())
        got = operators.linear(torch.ones(1, 1), operators.pack_linear(words[:, None].contiguous()))
        assert same_bits(got[0], words.float())


@pytest.mark.parametrize("heads", [HeadLayout(4, 2, 64), HeadLayout(3, 1, 80)])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_store_is_the_written_clause(operators, crowded, heads, normed, share) -> None:
    """Norm, rotation (whole or partial), and both layouts of the storage."""
    context = make_context(heads, 40)
    half = int(heads.head_dim * share) // 2
    table = context.table[:, :, :half].contiguous()
    norms = (context.query_norm, context.key_norm) if normed else (None, None)
    rows = context.qkv.numpy().reshape(40, -1, heads.head_dim)
    edge = heads.query_heads + heads.kv_heads
    queries, keys, values = np.split(rows, [heads.query_heads, edge], axis=1)
    if normed:
        queries = rms_norm(queries, context.query_norm.numpy(), EPS)
        keys = rms_norm(keys, context.key_norm.numpy(), EPS)
    for engine in (operators, crowded):
        kv = engine.allocate_kv(2, 3, 64, heads)[1]
        batch = make_batch([torch.tensor([2], dtype=torch.int32)], [(0, 40)], 64)
        got = engine.norm_rope_store(context.qkv, heads, *norms, EPS, table, batch, kv)
        assert same_bits(got, rotate(queries, table.numpy()[:40]))
        panels = kv.keys.view(3, heads.kv_heads, 4, heads.head_dim, 16)
        stored = panels.permute(0, 2, 4, 1, 3).reshape(3, 64, heads.kv_heads, heads.head_dim)
        assert same_bits(stored[2, :40].contiguous(), rotate(keys, table.numpy()[:40]))
        assert same_bits(kv.values[2].transpose(0, 1)[:40].contiguous(), values)
        assert not kv.keys[:2].any() and not kv.values[:2].any() and not kv.values[2, :, 40:].any()


def test_lanes_and_scalars_agree() -> None:
    """exp in sixteen lanes, exp of one number and the written exp are one function."""

    @compiled
    def both(x, one, many):
        for i in range(x.size):
            one[i] = kernel_exp32(x[i])
        for i in range(0, x.size, 16):
            store(many.ctypes.data, i, kernel_exp32(load(x.ctypes.data, i)))

    x = np.concatenate(
        [hashed_floats(61, (4096,), (-12, 7)), F32([0, -0.0, 88.7, 89, -87.4, -103.9, -104, 1e30] * 2)]
    )
    one, many = np.empty_like(x), np.empty_like(x)
    both(x, one, many)
    assert same_bits(one, many)
    assert same_bits(one, exp32(x))
