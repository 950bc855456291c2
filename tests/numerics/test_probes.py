"""Each probe notices each wrong arithmetic that its operator could be given: else the fingerprint would not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_arithmetic import F32, chain, leaf_sum, log_sum_exp, rms_norm
from kernel_ir import host_addresses
from numerics_cases import differing, same_bits
from planted_changes import (
    Change,
    NativePool,
    compile_native,
    contracted,
    folded_by_neighbours,
    other_exp,
    other_log,
    split_fused,
)
from test_numerics_rows import kernel_log

from samebits.numerics import probe_sampling, probes
from samebits.numerics.adversarial import wide_rows
from samebits.numerics.cpu.environment import machine
from samebits.numerics.cpu.noise import noise_of_words
from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.philox import token_word

GOLDEN = json.loads((Path(__file__).parent / "golden_probes.json").read_text())
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PRODUCTS = {"gemm bfloat16", "gemm float16", "gemm float32"}
# An embedding only copies, and the table of RoPE is made outside the kernels, of float64 sums and products.
WITH_FMA = PRODUCTS | {"norm", "attention", "gated activation", "log-sum-exp", "sampling"}

on_x86 = pytest.mark.skipif(machine() != "x86_64", reason="the modules are made on x86-64")


def changed_operators(modules: dict[str, str], change: Change) -> CpuOperators:
    """The operators of `exact` over kernels whose text was changed."""
    codes = {
        address: compile_native(change(modules[name]))
        for name, address in host_addresses().items()
        if name != "math"
    }
    return CpuOperators(pool=NativePool(codes))


def noticing(operators: CpuOperators) -> set[str]:
    """Names of the probes that differ from the golden ones."""
    found = operators.probe_digests(DTYPES)
    return {name for name in GOLDEN if found[name] != GOLDEN[name]}


@on_x86
def test_unchanged_kernels_give_the_golden_digests(modules) -> None:
    assert noticing(changed_operators(modules, lambda text: text)) == set()


@on_x86
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (split_fused, WITH_FMA),
        (contracted, {"attention", "log-sum-exp", "sampling"}),
        (folded_by_neighbours, {"norm", "attention", "log-sum-exp", "sampling"}),
        (other_exp, {"attention", "gated activation", "log-sum-exp", "sampling"}),
        (other_log, {"log-sum-exp", "sampling"}),
    ],
)
def test_changed_kernels_are_noticed(modules, change, expected) -> None:
    """Where a product feeds a sum, where lanes are folded, where an exponential or a logarithm is used."""
    assert noticing(changed_operators(modules, change)) == expected


@pytest.fixture
def flush_to_zero() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this torch cannot set flush-to-zero on this CPU")
    yield
    torch.set_flush_denormal(False)


@on_x86
def test_flushed_subnormals_are_noticed(modules, flush_to_zero) -> None:
    """The same code, called without the launcher's control word."""
    assert noticing(changed_operators(modules, lambda text: text)) == WITH_FMA


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_order_of_a_product_is_noticed(operators, dtype) -> None:
    x, weight, bias = probes.product_inputs(11, dtype)
    got = operators.linear(x, operators.pack_linear(weight, bias))
    rows, columns = x.numpy(), weight.float().numpy()
    assert same_bits(got, chain(rows, columns) + bias.numpy())
    backwards = chain(rows, columns, range(x.shape[1] - 1, -1, -1))
    for wrong in (backwards, leaf_sum(rows, columns, 2)):
        assert all(differing(got[row], wrong[row] + bias.numpy()) for row in range(len(rows)))


@pytest.mark.parametrize("lanes", [1, 4, 8, 32])
def test_other_lanes_of_a_norm_are_noticed(operators, lanes) -> None:
    x, weight = probes.norm_rows(21), wide_rows(27, 1, probes.NORM_WIDTH, 2)[0]
    got = operators.rms_norm(x, weight, probes.EPS)
    assert same_bits(got, rms_norm(x.numpy(), weight.numpy(), probes.EPS))
    assert differing(got, rms_norm(x.numpy(), weight.numpy(), probes.EPS, lanes)) > 0


@pytest.mark.parametrize("wrong", [{"lanes": 8}, {"lanes": 32}, {"block": 512}, {"block": 2048}])
def test_other_blocks_of_a_log_sum_exp_are_noticed(operators, wrong) -> None:
    noticed = 0
    for rows in probes.log_sum_exp_rows():
        got = operators.log_sum_exp(rows)
        assert same_bits(got, log_sum_exp(rows.numpy(), kernel_log))
        noticed += differing(got, log_sum_exp(rows.numpy(), kernel_log, **wrong))
    assert noticed > 0


def scores(row: int, logits: np.ndarray, library: bool) -> np.ndarray:
    """Scores of a row of tied logits with the kernels' own logarithms, or with correctly rounded ones."""
    ids = range(probe_sampling.TIED_VOCABULARY)
    words = np.array([token_word(probe_sampling.TIED_SEED, row, 0, i) for i in ids], np.uint32)
    noise = np.empty(len(words), np.float32)
    noise_of_words(words, noise)
    if library:
        v = (words + np.float64(0.5)).astype(F32) * F32(2.0**-32)
        e = (-np.log1p(-v.astype(np.float64))).astype(F32)
        noise = (-np.log(e.astype(np.float64))).astype(F32)
    return noise - (logits.max() - logits)


def test_noise_of_other_logarithms_is_noticed(operators) -> None:
    logits = probe_sampling.tied_logits()
    drawn = operators.sample(logits, probe_sampling.tied_batch(torch.device("cpu"))).token_ids[:-1].tolist()
    rows = logits.numpy()
    assert drawn == [int(scores(row, rows[row], library=False).argmax()) for row in range(len(drawn))]
    assert drawn != [int(scores(row, rows[row], library=True).argmax()) for row in range(len(drawn))]
