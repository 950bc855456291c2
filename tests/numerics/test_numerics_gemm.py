"""GEMM clause: a row's bits follow from the row and the weight alone, and the chain is the clause's chain."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_arithmetic import chain, fma32, leaf_sum, multiply_add
from numerics_cases import differing, same_bits

from samebits.errors import NumericsError
from samebits.numerics import reference
from samebits.numerics.adversarial import cancelling_product, hashed_floats, wide_rows

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def test_exact_fma_agrees_with_fractions() -> None:
    """The tests' own fused multiply-add against rational arithmetic."""
    a, b, c = (hashed_floats(seed, (400,), (-20, 20)) for seed in (1, 2, 3))
    c[:200] = -(a[:200] * b[:200]) * np.float32(1 + 2**-20)
    c[200:300] *= np.float32(2.0**-40)
    a[300:320] = hashed_floats(4, (20,), (-100, -90))
    got = fma32(a, b, c)
    for x, y, z, result in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        nearest = min(
            (np.nextafter(result, np.float32(-np.inf)), result, np.nextafter(result, np.float32(np.inf))),
            key=lambda candidate: (abs(Fraction(float(candidate)) - exact), candidate.view(np.int32) & 1),
        )
        assert nearest.view(np.int32) == result.view(np.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 2, 17, 122, 511, 513, 1030])
def test_is_the_ascending_chain(operators, dtype, depth) -> None:
    x, weight = cancelling_product(depth, 8, 37, depth, dtype)
    bias = wide_rows(5, 1, 37)[0]
    expected = chain(x.numpy(), weight.float().numpy())
    assert same_bits(operators.linear(x, operators.pack_linear(weight)), expected)
    with_bias = operators.linear(x, operators.pack_linear(weight, bias))
    assert same_bits(with_bias, expected + bias.numpy())


def mutants(x: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    depth = x.shape[1]
    ascending = list(range(depth))
    swapped = [*ascending[:-2], depth - 1, depth - 2]
    swapped_early = [1, 0, *ascending[2:]]
    return {
        "two-way split": leaf_sum(x, weight, 2),
        "eight leaves": leaf_sum(x, weight, 8),
        "reversed": chain(x, weight, ascending[::-1]),
        "last pair swapped": chain(x, weight, swapped),
        "first pair swapped": chain(x, weight, swapped_early),
        "tail dropped": chain(x, weight, ascending[:-1]),
        "head dropped": chain(x, weight, ascending[1:]),
        "unfused": chain(x, weight, atom=multiply_add),
        "even then odd": chain(x, weight, ascending[::2] + ascending[1::2]),
    }


@pytest.mark.parametrize("depth", [64, 384, 1152])
def test_every_wrong_chain_is_noticed(operators, depth) -> None:
    x, weight = cancelling_product(3, 16, 64, depth)
    got = operators.linear(x, operators.pack_linear(weight))
    for name, wrong in mutants(x.numpy(), weight.numpy()).items():
        assert differing(got, wrong) > 0, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 15, 16, 48, 65, 100])
def test_rows_do_not_know_their_number_or_place(operators, dtype, columns) -> None:
    x, weight = cancelling_product(9, 70, columns, 640, dtype)
    packed = operators.pack_linear(weight, wide_rows(6, 1, columns)[0])
    alone = torch.cat([operators.linear(x[row : row + 1].contiguous(), packed) for row in range(70)])
    for rows in [*range(1, 26), 31, 32, 33, 47, 48, 49, 63, 64, 65, 70]:
        assert same_bits(operators.linear(x[:rows].contiguous(), packed), alone[:rows]), rows
    order = torch.from_numpy(np.argsort(hashed_floats(8, (70,), (0, 8))))
    assert same_bits(operators.linear(x[order].contiguous(), packed), alone[order])


def test_many_rows_and_columns(operators, single) -> None:
    """Row blocks, blocks of depth and panels all in play."""
    x, weight = cancelling_product(10, 300, 720, 1100, torch.bfloat16)
    packed = operators.pack_linear(weight)
    whole = operators.linear(x, packed)
    for row in (0, 95, 96, 191, 192, 287, 288, 299):
        assert same_bits(single.linear(x[row : row + 1].contiguous(), packed), whole[row : row + 1])
    assert differing(whole[:-1], whole[1:]) > whole[1:].numel() // 2


@pytest.mark.parametrize("rows", [2, 7, 64])
def test_neighbours_do_not_matter(operators, rows) -> None:
    x, weight = cancelling_product(12, rows, 50, 400)
    packed = operators.pack_linear(weight)
    before = operators.linear(x, packed)
    for poison in (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45):
        changed = x.clone()
        changed[1:] = poison
        assert same_bits(operators.linear(changed, packed)[:1], before[:1])
        changed = x.clone()
        changed[:-1] = poison
        after = operators.linear(changed, packed)
        assert same_bits(after[-1:], before[-1:])
        assert differing(after[:1], before[:1]) > 0


@pytest.mark.parametrize("rows", [1, 3, 16, 130])
def test_threads_do_not_matter(operators, single, crowded, rows) -> None:
    x, weight = cancelling_product(13, rows, 1000, 512, torch.bfloat16)
    packed = single.pack_linear(weight)
    expected = single.linear(x, packed)
    for _ in range(5):
        assert same_bits(operators.linear(x, packed), expected)
        assert same_bits(crowded.linear(x, packed), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy(operators, dtype) -> None:
    x, weight = cancelling_product(14, 20, 70, 900, dtype)
    bias = wide_rows(7, 1, 70)[0]
    got = operators.linear(x, operators.pack_linear(weight, bias))
    error = (got.double() - reference.gemm(x, weight, bias)).abs()
    assert (error <= reference.gemm_bound(x, weight, bias)).all()


def test_padding_columns_stay_out(operators) -> None:
    """17 columns take two panels; nothing is written beyond the row."""
    x, weight = cancelling_product(15, 5, 17, 40)
    whole = operators.linear(x, operators.pack_linear(weight))
    assert whole.shape == (5, 17)
    part = operators.linear(x, operators.pack_linear(weight[:9].contiguous()))
    assert same_bits(part, whole[:, :9].contiguous())


def test_no_rows(operators) -> None:
    packed = operators.pack_linear(torch.ones(4, 3))
    assert operators.linear(torch.empty(0, 3), packed).shape == (0, 4)


def test_refusals(operators) -> None:
    with pytest.raises(NumericsError, match="bf16, fp16 or fp32"):
        operators.pack_linear(torch.ones(4, 4, dtype=torch.float64))
    with pytest.raises(NumericsError, match="bias"):
        operators.pack_linear(torch.ones(4, 4), torch.ones(3))
    packed = operators.pack_linear(torch.ones(4, 3))
    with pytest.raises(NumericsError, match="columns"):
        operators.linear(torch.ones(2, 4), packed)
    with pytest.raises(NumericsError, match="contiguous"):
        operators.linear(torch.ones(3, 2).t(), packed)
    with pytest.raises(NumericsError, match="float32"):
        operators.linear(torch.ones(2, 3, dtype=torch.bfloat16), packed)
