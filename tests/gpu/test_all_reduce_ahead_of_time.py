"""The collectives compiled for GPUs that are not here, and what their machine texts say."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

from ahead_of_time import compile_for, estimates, fusable_operations

from samebits.numerics.gpu import all_reduce, gathers, row_shares
from samebits.numerics.gpu.launch import TARGETS
from samebits.numerics.gpu.symmetric import ACQUIRED, FENCED

TABLES = {"inputs": "*i64", "pads": "*i64", "epochs": "*i64"}
FLAT: dict[str, Any] = {"BLOCK": 2048, "DEPENDENT": False}
SHARES = {
    **TABLES, "results": "*i64", "residual": "*bf16", "weight": "*bf16", "y": "*bf16", "total": "*bf16",
    "share_rows": "i32", "rank": "i32", "eps": "fp32",
}  # fmt: skip
SHARED: dict[str, Any] = {"WIDTH": 4096, "LANES": 1024, "FIRST": 1, "DEPENDENT": False}
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "one_shot": (
        all_reduce.one_shot,
        {**TABLES, "like": "*fp32", "y": "*bf16", "pieces": "i32", "rank": "i32"},
        {**FLAT, "FIRST": 1, "TREE": True},
    ),
    "two_shot": (
        all_reduce.two_shot,
        {
            **TABLES, "results": "*i64", "like": "*fp16", "y": "*fp16", "pieces": "i32", "share_pieces": "i32",
            "rank": "i32",
        },
        {**FLAT, "FIRST": 1, "TREE": False, "WAY": 0},
    ),
    "push": (
        all_reduce.two_shot,
        {
            **TABLES, "results": "*i64", "like": "*fp32", "y": "*bf16", "pieces": "i32", "share_pieces": "i32",
            "rank": "i32",
        },
        {**FLAT, "FIRST": 1, "TREE": True, "WAY": all_reduce.PUSH.value},
    ),
    "reduce_scatter": (
        all_reduce.reduce_scatter,
        {**TABLES, "like": "*fp32", "y": "*fp32", "pieces": "i32", "share_pieces": "i32", "rank": "i32"},
        {**FLAT, "FIRST": 1, "TREE": False},
    ),
    "all_gather": (all_reduce.all_gather, {**TABLES, "y": "*bf16", "pieces": "i32", "rank": "i32"}, FLAT),
    "gather_columns": (
        gathers.gather_columns,
        {**TABLES, "y": "*fp32", "rows": "i32", "held_pieces": "i32", "pieces": "i32", "rank": "i32"},
        FLAT,
    ),
    "gather_rows": (
        gathers.gather_rows,
        {**TABLES, "ids": "*i64", "y": "*bf16", "rows": "i32", "held": "i32", "rank": "i32"},
        {**FLAT, "WIDTH": 5120},
    ),
    "one_shot_add_norm": (
        all_reduce.one_shot_add_norm,
        {
            **TABLES, "like": "*bf16", "residual": "*bf16", "weight": "*bf16", "y": "*bf16", "total": "*bf16",
            "rows": "i32", "rank": "i32", "eps": "fp32",
        },
        {"WIDTH": 4096, "LANES": 1024, "FIRST": 1, "TREE": False, "DEPENDENT": False},
    ),
    "add_norm_shares": (
        row_shares.add_norm_shares,
        SHARES | {"like": "*bf16"},
        {**SHARED, "TREE": False, "WAY": all_reduce.READ.value, "NORMED": False},
    ),
    "add_norm_shares, pushed": (
        row_shares.add_norm_shares,
        SHARES | {"like": "*fp32"},
        {**SHARED, "TREE": True, "WAY": all_reduce.PUSHED.value, "NORMED": True},
    ),
}  # fmt: skip


def meeting_of(target: str) -> int:
    """How ranks meet there."""
    return int((ACQUIRED if target.startswith("sm_") else FENCED).value)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_collectives_compile_everywhere_and_leave_nothing_to_fuse(name: str, target: str) -> None:
    kernel, arguments, constants = KERNELS[name]
    for world in (2, 4, 8):
        constants = {**constants, "WORLD": world, "MEET": meeting_of(target)}
        texts = compile_for(target, kernel, arguments, constants, num_warps=8).asm
        if "ptx" in texts:
            assert fusable_operations(texts["ptx"]) == []
            assert estimates(texts["ptx"]) == []
            assert "atom.global.sys.release.exch" in texts["ptx"]
            assert "ld.acquire.sys.global.u64" in texts["ptx"]
            assert "multimem" not in texts["ptx"]
            # Peers are read in as wide accesses as there are elements for a thread.
            assert "ld.global.v2.b32" in texts["ptx"] or "ld.global.v4.b32" in texts["ptx"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_meeting_alone_compiles_everywhere(target: str) -> None:
    arguments = {"pads": "*i64", "epochs": "*i64", "rank": "i32"}
    constants = {"WORLD": 2, "MEET": meeting_of(target), "DEPENDENT": False}
    compile_for(target, gathers.meet_alone, arguments, constants, num_warps=8)


@pytest.mark.parametrize("name", KERNELS)
def test_collectives_wait_for_the_kernel_ahead_before_they_touch_memory(name: str) -> None:
    kernel, arguments, constants = KERNELS[name]
    constants = {**constants, "WORLD": 2, "MEET": meeting_of("sm_90"), "DEPENDENT": True}
    ptx = compile_for("sm_90", kernel, arguments, constants, num_warps=8, launch_pdl=True).asm["ptx"]
    assert "griddepcontrol.wait" in ptx
    before = ptx[: ptx.index("griddepcontrol.wait")]
    assert not any(access in before for access in ("ld.global", "ld.volatile", "st.global", "atom.global"))


@pytest.mark.parametrize("target", TARGETS)
def test_rows_are_pushed_everywhere(target: str) -> None:
    arguments = {"x": "*fp32", "peers": "*i64", "rows": "i32", "share_rows": "i32", "rank": "i32"}
    compile_for(
        target, gathers.push_rows, arguments, {"WIDTH": 5120, "BLOCK": 2048, "DEPENDENT": False}, num_warps=8
    )


def test_a_sum_of_what_was_pushed_reads_no_peer() -> None:
    kernel, arguments, constants = KERNELS["two_shot"]
    constants = {**constants, "WORLD": 4, "MEET": meeting_of("sm_90"), "WAY": all_reduce.PUSHED.value}
    ptx = compile_for("sm_90", kernel, arguments, constants, num_warps=8).asm["ptx"]
    assert fusable_operations(ptx) == []
    # Looked up are the pads, at the lanes of four and alone, the epoch, four results, and the own room; no peer's.
    assert ptx.count("ld.global.b64") == 1 + 1 + 1 + 4 + 1
