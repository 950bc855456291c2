"""Products by clusters: what their machine texts say, and where they are offered."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton")

from ahead_of_time import estimates, fusable_operations

from samebits.errors import NumericsError
from samebits.numerics.gpu import gemm_cluster, nvrtc
from samebits.numerics.gpu.gemm_operator import Offer
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.launch import PORTABLE

BF16 = torch.bfloat16
SHAPE = (12288, 4096, BF16)


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "gated"])
def gated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def code(gated: bool) -> nvrtc.Code:
    try:
        nvrtc.library()
    except NumericsError as error:
        pytest.skip(str(error))
    return nvrtc.compiled(gemm_cluster.kernel_text(gated), "gemm_cluster.cu")


def test_nothing_is_fused_and_the_activation_alone_estimated(code: nvrtc.Code, gated: bool) -> None:
    assert fusable_operations(code.ptx) == []
    assert set(estimates(code.ptx)) == ({"rcp.approx.ftz.f32", ".ftz"} if gated else set())
    assert ("div.rn.f32" in code.ptx) == gated, (
        "the clause's own sequence, where an estimate may round otherwise"
    )


def test_a_weight_block_goes_to_both_programs(code: nvrtc.Code) -> None:
    copies = re.findall(r"cp\.async\.bulk\.tensor\S+", code.ptx)
    both = [copy for copy in copies if copy.endswith("multicast::cluster")]
    assert copies and len(copies) == 2 * len(both)


def test_a_product_does_not_wait_for_the_one_before(code: nvrtc.Code) -> None:
    assert "wgmma.wait_group.sync.aligned 1;" in code.ptx


def test_a_text_that_does_not_compile_says_why(code: nvrtc.Code) -> None:
    with pytest.raises(NumericsError, match="nowhere"):
        nvrtc.compiled("int f() { return nowhere; }", "broken.cu")


def test_they_are_offered_for_whole_tiles_of_many_rows(gated: bool) -> None:
    fits = gemm_cluster.fits
    assert [name for name in PORTABLE if fits(*SHAPE, 8192, name, gated)] == ["sm_90"]
    assert not fits(*SHAPE, 1024, "sm_90", gated)
    assert not fits(*SHAPE, 8192 + 128, "sm_90", gated)
    assert not fits(12288 + 64, 4096, BF16, 8192, "sm_90", gated)
    assert not fits(12288, 4096 + 32, BF16, 8192, "sm_90", gated)
    assert not fits(12288, 4096, torch.float16, 8192, "sm_90", gated)


def test_a_product_with_bias_or_in_float32_is_not_theirs() -> None:
    assert Offer.of(GemmProblem(4096, 4096, BF16, BF16), 8192, "sm_90").clusters
    assert not Offer.of(GemmProblem(4096, 4096, BF16, BF16, bias=True), 8192, "sm_90").clusters
    assert not Offer.of(GemmProblem(4096, 4096, BF16, torch.float32), 8192, "sm_90").clusters
