"""Every kernel but the products, as the engine launches it, compiled for GPUs that are not here.

The launches are made for real, on CPU tensors; instead of running, each says which binary it wants.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ahead_of_time import estimates, fusable_operations
from sampling_reference import Row, make_batch
from triton import knobs

from samebits.numerics.gpu import (
    activation,
    attention,
    attention_prefill,
    configuration,
    embedding,
    log_sum_exp,
    norm,
    rope_store,
    sampling,
    top,
)
from samebits.numerics.gpu.attention import RangeLaunch, claiming_launch, default_ranges
from samebits.numerics.gpu.attention_plan import decode_units, plan_attention
from samebits.numerics.gpu.attention_prefill import HopperLaunch, TileLaunch
from samebits.numerics.gpu.attention_shape import AttentionShape, Context
from samebits.numerics.gpu.configuration import named_source
from samebits.numerics.gpu.launch import NVIDIA, PORTABLE, TARGETS, KernelSource
from samebits.numerics.operators import HeadLayout

CPU = torch.device("cpu")
HEADS = HeadLayout(8, 2, 64)
ROUGH = frozenset({"lg2.approx.f32", "lg2.approx.ftz.f32", ".ftz"})
"""The sampler's guess who may win."""
RECIPROCAL = frozenset({"div.full.f32"})
"""The attention clause's estimate of 1 / L, which two fused operations correct."""
ROWS, WIDTH, VOCABULARY, PAGES = 4, 512, 5000, 8


class Recorder:
    """Takes a launch's place and keeps the binary that it asked for."""

    def __init__(self) -> None:
        self.sources: dict[KernelSource, None] = {}

    def __call__(self, source: KernelSource) -> Recorder:
        self.sources[source] = None
        return self

    def launch(self, grid: tuple[int, int, int], *arguments: object) -> None:
        """Nothing runs."""


def act(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def launch_rows(dtype: torch.dtype) -> None:
    x, weight = act(ROWS, WIDTH, dtype=dtype), act(WIDTH, dtype=dtype)
    norm.rms_norm(x, weight, 1e-6)
    norm.add_rms_norm(x, x, weight, 1e-6)
    for rows in (norm.MANY_ROWS, norm.PREFILL_ROWS):
        many = act(rows, WIDTH, dtype=dtype)
        norm.add_rms_norm(many, many, weight, 1e-6)
    activation.silu_mul(x)
    embedding.embed(torch.zeros(ROWS, dtype=torch.int64), x)
    kv = act(PAGES, HEADS.kv_heads, 64, HEADS.head_dim, dtype=dtype)
    scale = act(HEADS.head_dim, dtype=dtype)
    positions = torch.zeros(ROWS, dtype=torch.int64)
    qkv = act(ROWS, HEADS.query_width + 2 * HEADS.kv_width, dtype=dtype)
    faults = torch.zeros(ROWS, dtype=torch.uint8)
    for weights in (scale, None):
        rope_store.norm_rope_store(
            qkv, HEADS, weights, weights, 1e-6, torch.zeros(9, 2, 32), positions, positions, faults, kv, kv
        )


def launch_attention(dtype: torch.dtype, described: bool = False) -> None:
    shape = AttentionShape(HEADS, 64)
    kv = act(PAGES, HEADS.kv_heads, 64, HEADS.head_dim, dtype=dtype)
    positions = torch.arange(ROWS)
    context = Context(kv, kv, positions, torch.zeros((1, 4), dtype=torch.int32))
    queries = act(ROWS, HEADS.query_heads, HEADS.head_dim, dtype=dtype)
    output = torch.empty_like(queries)
    attention.reference(shape, queries, context, torch.zeros(ROWS, dtype=torch.int32), 0.1, output)
    work = plan_attention(np.array([0, ROWS], np.int32), positions.numpy(), 16, 1, CPU)
    assert work.tiles is not None
    tile = TileLaunch(described=described)
    attention_prefill.tiles(shape, queries, context, work.tiles, 0.1, output, tile)
    units, ranges = decode_units(ROWS, ROWS, CPU), RangeLaunch(8)
    buffers = attention.range_buffers(shape, ROWS, 1, 8, 64, CPU)
    attention.plan_ranges(shape, positions, context.page_table, units, buffers, ranges)
    for pinned in (True, False):
        attention.shared(shape, queries, context, units, 0.1, output, buffers, ranges, pinned)


def launch_sampling() -> None:
    logits = torch.zeros(ROWS, VOCABULARY)
    lse = log_sum_exp.log_sum_exp(logits)
    pairs = torch.zeros(3, dtype=torch.int64)
    log_sum_exp.token_logprobs(logits, lse, pairs, pairs)
    top.top_tokens(logits, 20)
    batch = make_batch([Row(bias={1: 0.5})] * ROWS, VOCABULARY)
    sampling.sample(logits, batch, want_processed=True)
    words = torch.zeros((ROWS, -(-VOCABULARY // 32)), dtype=torch.int32)
    sampling.sample(logits, replace(batch, allowed=words))


WORDS_OF_A_PLAN = 12
"""of a program of the shared ranges"""


def disassembled(binary: bytes, folder: Path) -> str:
    """Machine code, whole: what the compiler keeps beside a large binary ends somewhere in it."""
    (folder / "kernel.cubin").write_bytes(binary)
    command = [knobs.nvidia.nvdisasm.path, "-c", str(folder / "kernel.cubin")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    made = Recorder()
    for module in (configuration, attention, attention_prefill):
        monkeypatch.setattr(module, "load", made)
    yield made


def check_texts(sources: Recorder, target: str, estimated: frozenset[str] = frozenset()) -> None:
    """Compile everything; NVIDIA texts leave nothing to fuse, and no estimate but those that a clause allows."""
    assert sources.sources
    for source in sources.sources:
        asm = source.compile(TARGETS[target]).asm
        if "ptx" in asm:
            assert not fusable_operations(asm["ptx"]), source.name
            assert set(estimates(asm["ptx"])) <= estimated, source.name
            assert "tf32" not in asm["ptx"], source.name


@pytest.mark.parametrize("target", PORTABLE)
def test_kernels_of_rows(target: str, recorder: Recorder) -> None:
    launch_rows(torch.bfloat16)
    if target == "sm_90":
        launch_rows(torch.float16)
        launch_rows(torch.float32)
    check_texts(recorder, target)


@pytest.mark.parametrize("target", NVIDIA)
def test_the_rough_activation(target: str) -> None:
    constants = {"WIDTH": WIDTH, "BLOCK": activation.BLOCK, "ROUGH": True}
    source = named_source(activation.silu_mul_rows, ("*bf16", "*bf16"), constants, activation.SILU_LAUNCH)
    ptx = source.compile(TARGETS[target]).asm["ptx"]
    assert not fusable_operations(ptx)
    assert set(estimates(ptx)) <= RECIPROCAL | {"rcp.approx.ftz.f32", "ex2.approx.ftz.f32", ".ftz"}


@pytest.mark.parametrize("target", PORTABLE)
def test_attention(target: str, recorder: Recorder) -> None:
    launch_attention(torch.bfloat16)
    if target == "sm_90":
        launch_attention(torch.float16)
        launch_attention(torch.float32)
    check_texts(recorder, target, RECIPROCAL)


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_attention_by_tensor_descriptors(target: str, recorder: Recorder) -> None:
    launch_attention(torch.bfloat16, described=True)
    check_texts(recorder, target, RECIPROCAL)


def carried(text: str) -> list[int]:
    """How many variables each loop of a kernel carries, in its intermediate form."""
    return [found.count(" = ") for found in re.findall(r"scf\.for [^\n]*iter_args\(([^)]*)\)", text)]


@pytest.mark.parametrize(
    ("dtype", "group", "head_dim"),
    [(torch.bfloat16, 4, 128), (torch.float16, 4, 128), (torch.bfloat16, 5, 64), (torch.float16, 1, 64)],
)
def test_attention_for_hopper(dtype: torch.dtype, group: int, head_dim: int) -> None:
    shape = AttentionShape(HeadLayout(2 * group, 2, head_dim), 64)
    launch = HopperLaunch()
    compiled = attention_prefill.tile_source(shape, dtype, launch).compile(TARGETS["sm_90"])
    ptx = compiled.asm["ptx"]
    assert not fusable_operations(ptx)
    assert set(estimates(ptx)) <= RECIPROCAL
    assert "wgmma.mma_async" in ptx and "setmaxnreg" in ptx
    # The assembler makes products wait for each other, one by one, where it cannot follow who holds an accumulator.
    machine_code = compiled.asm["sass"]
    assert machine_code.count("WARPGROUP.DEPBAR") < machine_code.count("HGMMA") / 2
    # The compiler drops a variable that a loop carries to bound an inner loop alone, and goes on with its first value.
    written, kept = (carried(str(compiled.asm[stage])) for stage in ("source", "ttgir"))
    assert len(written) == len(kept) == 8  # three loops of each group of consumers, and the producer's two
    assert written[:6] == kept[:6] and all(written[:6])


@pytest.mark.parametrize(
    ("dtype", "group", "head_dim"),
    [(torch.bfloat16, 4, 128), (torch.float16, 8, 128), (torch.bfloat16, 5, 64), (torch.float16, 1, 64)],
)
def test_ranges_for_hopper(
    dtype: torch.dtype, group: int, head_dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration, "dependent_launches", lambda: True)
    shape = AttentionShape(HeadLayout(2 * group, 2, head_dim), 64)
    for rows in (1, 1000):
        launch = claiming_launch(rows, 132)
        compiled = attention.range_source(shape, dtype, group, launch).compile(TARGETS["sm_90"])
        ptx = compiled.asm["ptx"]
        assert not fusable_operations(ptx)
        assert set(estimates(ptx)) <= RECIPROCAL
        # Eight query rows are the narrow side of every product, and products of a split's key blocks run side by side.
        assert set(re.findall(r"wgmma.mma_async.sync.aligned.m64n(\d+)", ptx)) == {"8"}
        machine_code = disassembled(compiled.asm["cubin"], tmp_path)
        assert machine_code.count("WARPGROUP.DEPBAR") == 1 + shape.split_tokens // shape.key_block_tokens
        # No warp keeps anything in memory because its registers do not suffice.
        assert "STL" not in machine_code


def test_claims_touch_nothing_before_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the plan of the step, which lets nothing start before it has ended, and copies of keys and values that
    stood before, by the warp that asks for claims after it has waited."""
    monkeypatch.setattr(configuration, "dependent_launches", lambda: True)
    launch = claiming_launch(1, 132)
    source = attention.range_source(AttentionShape(HEADS, 64), torch.bfloat16, 4, launch)
    ahead, *behind = source.compile(TARGETS["sm_90"]).asm["ptx"].split("griddepcontrol.wait")
    assert "griddepcontrol.launch_dependents" in ahead
    for access in ("st.global", "st.relaxed", "atom.", "cp.async.bulk.tensor"):
        assert access not in ahead, access
    asking = [part for part in behind if "atom." in part]
    assert len(asking) == 2 and not any("cp.async.bulk.tensor" in part for part in asking)


@pytest.mark.parametrize(
    ("dtype", "heads", "split", "tokens", "served"),
    [
        (torch.bfloat16, HeadLayout(32, 8, 128), 256, 1, True),
        (torch.float16, HeadLayout(32, 8, 64), 256, 2, True),
        (torch.float32, HeadLayout(32, 8, 128), 256, 1, False),
        (torch.bfloat16, HeadLayout(32, 8, 128), 256, 3, False),
        (torch.bfloat16, HeadLayout(32, 8, 96), 256, 1, False),
        (torch.bfloat16, HeadLayout(32, 8, 128), 512, 1, False),
    ],
)
def test_what_the_ranges_for_hopper_serve(
    dtype: torch.dtype,
    heads: HeadLayout,
    split: int,
    tokens: int,
    served: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = AttentionShape(heads, 64, split)
    assert not default_ranges(shape, dtype, tokens, 1, 132).specialised
    monkeypatch.setattr(configuration, "dependent_launches", lambda: True)
    monkeypatch.setattr(attention, "target_name", lambda: "sm_90")
    assert default_ranges(shape, dtype, tokens, 1, 132).specialised == served
    assert not default_ranges(shape, dtype, tokens, 1, 132, pinned=False).specialised
    monkeypatch.setattr(attention, "target_name", lambda: "sm_100")
    assert not default_ranges(shape, dtype, tokens, 1, 132).specialised


def test_only_hopper_is_offered_its_kernel() -> None:
    launch, shape = HopperLaunch(), AttentionShape(HEADS, 64)
    assert [name for name in PORTABLE if launch.serves(shape, torch.bfloat16, name)] == ["sm_90"]
    assert not launch.serves(shape, torch.float32, "sm_90")
    assert not launch.serves(AttentionShape(HeadLayout(8, 2, 256), 64), torch.bfloat16, "sm_90")
    assert all(TileLaunch().serves(shape, torch.bfloat16, name) for name in PORTABLE)


@pytest.mark.parametrize("target", PORTABLE)
def test_the_sampling_stage(target: str, recorder: Recorder) -> None:
    launch_sampling()
    check_texts(recorder, target, ROUGH)


@pytest.mark.parametrize("target", NVIDIA)
def test_the_noise_of_the_sampling_stage_by_nvidias_logarithm(
    target: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "on_nvidia", lambda: True)
    launch_sampling()
    check_texts(recorder, target, ROUGH)
    texts = {source.name: source.compile(TARGETS[target]).asm["ptx"] for source in recorder.sources}
    named = {name for name, text in texts.items() if "lg2.approx.ftz.f32 " in text}
    assert named == {"scores_of_chunks", "choose_tokens"}


def test_dependent_kernels_touch_nothing_before_they_wait(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration, "dependent_launches", lambda: True)
    launch_rows(torch.bfloat16)
    launch_attention(torch.bfloat16, described=True)
    launch_sampling()
    dependent = [source for source in recorder.sources if source.dependent]
    assert {source.name for source in dependent} >= {"rms_norm_rows", "attention_ranges", "scores_of_chunks"}
    for source in dependent:
        ptx = source.compile(TARGETS["sm_90"]).asm["ptx"]
        ahead, behind = ptx.split("griddepcontrol.wait")
        # What the plan of a step finds and writes, kernels may read ahead of their waits: it lets none start early.
        assert ("griddepcontrol.launch_dependents" in ahead) != (source.name == "plan_ranges"), source.name
        early = 0
        if source.name == "plan_ranges":
            assert behind.rindex("fence.acq_rel.gpu") > behind.rindex("st.global")
        if source.name == "rms_norm_rows":
            # Its weights, which never change; twice as many values come behind.
            early = ahead.count("ld.global")
            assert not early or behind.count("ld.global") in (early, 2 * early)
        if source.name == "attention_ranges":
            early = WORDS_OF_A_PLAN
        assert ahead.count("ld.global") == early, source.name
        for access in ("st.global", "cp.async.cg", "cp.async.bulk.tensor", "atom."):
            assert access not in ahead, (source.name, access)
        assert "ld.global" in behind, source.name
