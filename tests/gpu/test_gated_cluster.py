"""The gated product by clusters: what its machine text says, and where it is offered."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton")

from ahead_of_time import estimates, fusable_operations

from samebits.errors import NumericsError
from samebits.numerics.gpu import gated_cluster, nvrtc
from samebits.numerics.gpu.launch import PORTABLE

BF16 = torch.bfloat16
SHAPE = (12288, 4096, BF16)


@pytest.fixture(scope="module")
def code() -> nvrtc.Code:
    try:
        nvrtc.library()
    except NumericsError as error:
        pytest.skip(str(error))
    return nvrtc.compiled(gated_cluster.kernel_text(), "gated_cluster.cu")


def test_nothing_is_fused_and_the_activation_alone_estimated(code: nvrtc.Code) -> None:
    assert fusable_operations(code.ptx) == []
    assert set(estimates(code.ptx)) == {"rcp.approx.ftz.f32", ".ftz"}
    assert "div.rn.f32" in code.ptx, "the clause's own sequence, where an estimate may round otherwise"


def test_a_weight_block_goes_to_both_programs(code: nvrtc.Code) -> None:
    copies = re.findall(r"cp\.async\.bulk\.tensor\S+", code.ptx)
    both = [copy for copy in copies if copy.endswith("multicast::cluster")]
    assert copies and len(copies) == 2 * len(both)


def test_a_product_does_not_wait_for_the_one_before(code: nvrtc.Code) -> None:
    assert "wgmma.wait_group.sync.aligned 1;" in code.ptx


def test_a_text_that_does_not_compile_says_why(code: nvrtc.Code) -> None:
    with pytest.raises(NumericsError, match="nowhere"):
        nvrtc.compiled("int f() { return nowhere; }", "broken.cu")


def test_it_is_offered_for_whole_tiles_of_many_rows() -> None:
    fits = gated_cluster.fits
    assert [name for name in PORTABLE if fits(*SHAPE, 8192, name)] == ["sm_90"]
    assert not fits(*SHAPE, 1024, "sm_90")
    assert not fits(*SHAPE, 8192 + 128, "sm_90")
    assert not fits(12288 + 64, 4096, BF16, 8192, "sm_90")
    assert not fits(12288, 4096 + 32, BF16, 8192, "sm_90")
    assert not fits(12288, 4096, torch.float16, 8192, "sm_90")
