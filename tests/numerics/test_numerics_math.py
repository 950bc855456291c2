"""exp, log, log1p: accuracy against float64 and the results of special values; the RoPE table."""

from __future__ import annotations

import decimal
import time
from decimal import Decimal

import numpy as np
import pytest
import torch
from numerics_cases import same_bits

from samebits.errors import NumericsError
from samebits.numerics.cpu.kernel import compiled
from samebits.numerics.cpu.math import exp32, log1p32, log32
from samebits.numerics.probes import LLAMA3, digest_of
from samebits.numerics.rope import cosine_sine, inverse_frequencies, rope_table

INFINITY = float("inf")


@compiled
def many_exp(x, y):
    for i in range(x.size):
        y[i] = exp32(x[i])


@compiled
def many_log(x, y):
    for i in range(x.size):
        y[i] = log32(x[i])


@compiled
def many_log1p(x, y):
    for i in range(x.size):
        y[i] = log1p32(x[i])


FUNCTIONS = {"exp": (many_exp, np.exp), "log": (many_log, np.log), "log1p": (many_log1p, np.log1p)}


def evaluate(name: str, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    FUNCTIONS[name][0](x, y)
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_one_unit_in_the_last_place(name) -> None:
    """Every 997th float32 of both signs, against float64."""
    x = np.arange(0, 1 << 32, 997, dtype=np.uint64).astype(np.uint32).view(np.float32)
    got = evaluate(name, x)
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name][1](x.astype(np.float64))
        nearest = exact.astype(np.float32)
    assert (np.isnan(got) == np.isnan(nearest)).all()
    infinite = np.isinf(nearest)
    assert (got[infinite] == nearest[infinite]).all()
    finite = np.isfinite(nearest)
    unit = np.maximum(np.spacing(np.abs(nearest[finite])), np.float32(2.0**-149)).astype(np.float64)
    assert (np.abs(got[finite].astype(np.float64) - exact[finite]) / unit).max() <= 1.0


def test_special_values() -> None:
    x = np.array([-INFINITY, INFINITY, 0.0, -0.0, 1.0, -104.5, 89.5], np.float32)
    assert evaluate("exp", x).tolist() == [0.0, INFINITY, 1.0, 1.0, float(np.float32(np.e)), 0.0, INFINITY]
    x = np.array([0.0, -0.0, 1.0, INFINITY], np.float32)
    assert evaluate("log", x).tolist() == [-INFINITY, -INFINITY, 0.0, INFINITY]
    x = np.array([-1.0, 0.0, INFINITY, 1e-30], np.float32)
    assert evaluate("log1p", x).tolist() == [-INFINITY, 0.0, INFINITY, float(np.float32(1e-30))]
    for name, bad in (("exp", np.nan), ("log", np.nan), ("log", -1.0), ("log1p", np.nan), ("log1p", -1.5)):
        assert np.isnan(evaluate(name, np.array([bad], np.float32))).all()


def decimal_cosine_sine(angle: Decimal) -> tuple[float, float]:
    """cos and sin by their series in 60 digits."""
    cosine, sine, term, n = Decimal(0), Decimal(0), Decimal(1), 0
    while abs(term) > Decimal(10) ** -55 or n < 4:
        signed = -term if n % 4 >= 2 else term
        if n % 2 == 0:
            cosine += signed
        else:
            sine += signed
        n += 1
        term = term * angle / n
    return float(cosine), float(sine)


def test_table_is_right_to_half_a_unit() -> None:
    """Against decimal arithmetic; the angle in float64 may be off by 2**-53 of itself."""
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
    positions, theta, width = 4096, 1e6, 64
    table = rope_table(positions, theta, width).double().numpy()
    frequencies = inverse_frequencies(theta, width)
    with decimal.localcontext() as context:
        context.prec = 60
        for position in (0, 1, 2, 3, 17, 511, 4095):
            for i in (0, 1, 5, 15, 31):
                angle = Decimal(position) * Decimal(theta) ** (Decimal(-2 * i) / width)
                cosine, sine = decimal_cosine_sine(angle % (2 * pi))
                assert abs(frequencies[i] - float(Decimal(theta) ** (Decimal(-2 * i) / width))) == 0
                bound = 2.0**-25 + float(angle) * 2.0**-52
                assert abs(table[position, 0, i] - cosine) <= bound
                assert abs(table[position, 1, i] - sine) <= bound


def test_table_of_large_positions_agrees_with_the_library() -> None:
    angles = np.arange(0, 1 << 20, 37, dtype=np.float64) * 0.7310585
    cosine, sine = cosine_sine(angles)
    assert np.abs(cosine - np.cos(angles)).max() < 2.0**-45
    assert np.abs(sine - np.sin(angles)).max() < 2.0**-45


def test_a_table_does_not_depend_on_its_length() -> None:
    """Trap 19: a longer table begins with the shorter one."""
    assert same_bits(rope_table(5000, 1e6, 64)[:700].contiguous(), rope_table(700, 1e6, 64))


def test_llama3_frequencies() -> None:
    """Short waves are kept, long ones slowed by the factor, those between blended."""
    plain = inverse_frequencies(5e5, 128)
    scaled = inverse_frequencies(5e5, 128, "llama3", LLAMA3)
    waves = 2 * np.pi / plain
    assert (scaled[waves < 8192 / 4] == plain[waves < 8192 / 4]).all()
    assert np.allclose(scaled[waves > 8192], plain[waves > 8192] / 8, rtol=1e-15)
    between = (waves > 8192 / 4) & (waves < 8192)
    share = (8192 / waves - 1) / 3
    blended = (1 - share) * plain / 8 + share * plain
    assert between.any() and np.allclose(scaled[between], blended[between], rtol=1e-14)


def test_table_golden_digest() -> None:
    """The table of the bundled model, and the inverse: another theta is another table."""
    table = rope_table(8192, 1e6, 64)
    assert digest_of(table) == "e3c5867c5fd4a43a842dfc989977ca66f5caaab8be47dfb7a86c01d9326c7c19"
    assert digest_of(rope_table(8192, 1e6 + 1, 64)) != digest_of(table)


def test_table_is_quick() -> None:
    start = time.process_time()
    rope_table(8192, 1e6, 128)
    assert time.process_time() - start < 2.0


def test_flush_to_zero_does_not_reach_the_table() -> None:
    expected = rope_table(512, 1e6, 64)
    torch.set_flush_denormal(True)
    try:
        assert same_bits(rope_table(512, 1e6, 64), expected)
    finally:
        torch.set_flush_denormal(False)


def test_refusals() -> None:
    with pytest.raises(NumericsError, match="yarn"):
        rope_table(8, 1e4, 64, "yarn")
    with pytest.raises(NumericsError, match="original_max_position_embeddings"):
        rope_table(8, 1e4, 64, "llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})
    with pytest.raises(NumericsError, match="even"):
        rope_table(8, 1e4, 63)
    with pytest.raises(NumericsError, match="positions"):
        rope_table(1 << 21, 1e4, 64)
