"""exp, log, log1p and the noise on the GPU have the bits of the CPU kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from numba import njit

from conftest import INTERPRETED
from samebits.numerics.cpu import math as cpu_math
from samebits.numerics.cpu.kernel import COMPILE_OPTIONS
from samebits.numerics.gpu import arithmetic, philox
from samebits.numerics.gpu.configuration import Launch, on_nvidia, start
from samebits.numerics.philox import philox4x32


@triton.jit
def apply(x, y, count, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, place < count)
    if FUNCTION == 0:
        value = arithmetic.exp(value)
    elif FUNCTION == 1:
        value = arithmetic.log(value)
    else:
        value = arithmetic.log1p(value)
    tl.store(y + place, value, place < count)


@triton.jit
def draw_noise(y, first, seed, position, sample_index, COUNT: tl.constexpr):
    seed_value = tl.load(seed)
    place = tl.load(position)
    index = tl.load(sample_index)
    by_range = philox.noise_of_words(philox.words_of_range(first, COUNT, seed_value, place, index))
    ids = first + tl.arange(0, COUNT)
    by_id = philox.noise_of_words(philox.words_of_ids(ids, seed_value, place, index))
    tl.store(y + tl.arange(0, COUNT), by_range)
    tl.store(y + COUNT + tl.arange(0, COUNT), by_id)


@triton.jit
def largest_roughness(y, first, COUNT: tl.constexpr, NVIDIA: tl.constexpr):
    words = first.to(tl.int64) * COUNT + tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    words = words.to(tl.uint32)
    error = tl.abs(philox.rough_noise_of_words(words, NVIDIA) - philox.noise_of_words(words))
    tl.store(y + tl.program_id(0), tl.max(error, 0))


def on_cpu(function: Callable[[np.float32], np.float32]) -> Callable[[np.ndarray], np.ndarray]:
    @njit(**COMPILE_OPTIONS)
    def loop(x, y):
        for i in range(x.shape[0]):
            y[i] = function(x[i])

    def run(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        loop(x, y)
        return y

    return run


CPU = [on_cpu(cpu_math.exp32), on_cpu(cpu_math.log32), on_cpu(cpu_math.log1p32)]


def many_floats() -> np.ndarray:
    """Floats of every exponent and sign, and the special ones."""
    random = np.random.default_rng(5)
    bits = random.integers(0, 2**32, 60_000, dtype=np.uint64).astype(np.uint32)
    near = random.normal(0, 10, 20_000).astype(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1.0, 1.0, -104.0, 89.0, 1e-45], np.float32)
    return np.concatenate([bits.view(np.float32), near, special])


@pytest.mark.parametrize("function", range(3))
def check_functions_have_the_cpu_bits(function: int, device: torch.device) -> None:
    x = many_floats()
    expected = CPU[function](x)
    given = torch.from_numpy(x).to(device)
    got = torch.empty_like(given)
    blocks = -(-len(x) // 1024)
    start(apply, (blocks,), given, got, len(x), FUNCTION=function, BLOCK=1024, launch=Launch())
    answer = got.cpu().numpy()
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(answer), ~numbers)
    assert np.array_equal(answer[numbers].view(np.int32), expected[numbers].view(np.int32))
    wrong = CPU[function](np.nextafter(x, np.float32(1)))
    assert not np.array_equal(answer[numbers].view(np.int32), wrong[numbers].view(np.int32))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, -(2**63)])
def check_noise_has_the_cpu_words(seed: int, device: torch.device) -> None:
    count, first, position, index = 64, 151_900 // 4 * 4, 40_000, 3
    arguments = [torch.tensor([value], device=device) for value in (seed, position, index)]
    got = torch.empty(2 * count, device=device)
    start(draw_noise, (1,), got, first, *arguments, COUNT=count, launch=Launch())
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    words = np.array(
        [philox4x32((i // 4, position, index, 0), key)[i % 4] for i in range(first, first + count)], np.uint32
    )
    v = (words.astype(np.float64) + 0.5).astype(np.float32) * np.float32(2.0**-32)
    v = np.minimum(v, np.float32(1 - 2.0**-24))
    expected = -CPU[1](-CPU[2](-v))
    assert np.array_equal(got.cpu().numpy().view(np.int32), np.tile(expected, 2).view(np.int32))


def check_rough_noise_is_near(device: torch.device) -> None:
    """On a GPU: for every word that there is."""
    count = 256 if INTERPRETED else 4096
    blocks = 2**32 // count
    step = blocks // 64 if INTERPRETED else blocks // 16
    for first in range(0, blocks, step):
        programs = 1 if INTERPRETED else step
        errors = torch.full((programs,), math.nan, device=device)
        start(largest_roughness, (programs,), errors, first, COUNT=count, NVIDIA=on_nvidia(), launch=Launch())
        assert bool((errors < philox.ROUGHNESS.value / 4).all()), float(errors.max())
    edge = torch.full((2,), math.nan, device=device)
    start(largest_roughness, (2,), edge, blocks - 2, COUNT=count, NVIDIA=on_nvidia(), launch=Launch())
    assert bool((edge < philox.ROUGHNESS.value / 4).all())
