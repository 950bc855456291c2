"""The figures of `samebits bench parallel` that are computed and not measured."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("triton")

from samebits.bench.parallel import contender, exchanging, floor_milliseconds
from samebits.config import ModelConfig
from samebits.errors import ConfigError
from samebits.models.load import read_model_files
from samebits.models.weights import expected_shapes


def test_names_of_contenders() -> None:
    one = contender("unpinned+one-shot@1", 2)
    assert (one.profile, one.method, one.degree, one.sums) == ("unpinned", "one-shot", 1, "exact")
    assert contender("unpinned", 4).sums == "nccl" and contender("unpinned", 4).degree == 4
    assert contender("tp-invariant", 2).sums == "tp-invariant"
    with pytest.raises(ConfigError, match="a degree follows"):
        contender("exact@two", 2)


def test_floor_of_a_rank_is_its_share() -> None:
    files = read_model_files(ModelConfig(model="llama-3.1-70b-shaped", load_format="dummy"))
    shapes = expected_shapes(files.spec, files.family.names)
    assert 140e9 < sum(2 * math.prod(shape) for shape in shapes.values()) < 142e9
    whole, half = (floor_milliseconds(files.spec, shapes, 32, 1024, degree) for degree in (1, 2))
    assert half == pytest.approx(whole / 2)


def test_kernels_that_exchange() -> None:
    kernels = {
        "one_shot": 1.0,
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL": 2.0,
        "tile_gemm": 4.0,
        "meet_alone": 8.0,
    }
    assert exchanging(kernels) == 11.0
