"""GEMM kernels compiled for GPUs that are not here, and what their machine texts say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ahead_of_time import estimates, fusable_operations

import samebits
from samebits.numerics.gpu import gated_operator, tree_operator, tree_pushed
from samebits.numerics.gpu.buckets import BUCKETS
from samebits.numerics.gpu.gemm_candidates import (
    AHEAD,
    DECODE,
    DECODE_32,
    DECODE_64,
    DESCRIPTORS,
    FLOAT32_TILES,
    HOPPER,
    MIDDLE,
    PERSISTENT,
    PLAIN,
    PREFILL,
    Tile,
    tiles_on,
)
from samebits.numerics.gpu.gemm_operator import reference_source
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.launch import PORTABLE, TARGETS, KernelSource

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
EVEN = GemmProblem(6144, 4096, BF16, BF16)
ODD = GemmProblem(151, 72, BF16, FP32, bias=True)


def texts_of(source: KernelSource, target: str) -> dict[str, str]:
    return source.compile(TARGETS[target]).asm


@pytest.mark.parametrize("target", PORTABLE)
@pytest.mark.parametrize(
    "problem", [ODD, GemmProblem(1024, 512, FP16, FP16)], ids=lambda problem: problem.key
)
def test_the_plain_tile_and_the_reference_compile_everywhere(target: str, problem: GemmProblem) -> None:
    assert PLAIN.fits(problem, 1, target)
    texts_of(PLAIN.source(problem, 1), target)
    texts_of(reference_source(problem), target)


@pytest.mark.parametrize("target", PORTABLE)
def test_float32_products_compile_everywhere_and_are_no_tf32(target: str) -> None:
    problem = GemmProblem(256, 512, FP32, FP32)
    for source in (FLOAT32_TILES[-1].source(problem, 1), reference_source(problem)):
        texts = texts_of(source, target)
        if "ptx" in texts:
            assert "tf32" not in texts["ptx"]
            assert "fma.rn.f32" in texts["ptx"]
            assert fusable_operations(texts["ptx"]) == []


@pytest.mark.parametrize("target", PORTABLE)
def test_the_fused_activation_and_the_tree_compile_everywhere(target: str) -> None:
    gated = gated_operator.GatedProblem(192, 128, BF16)
    tile = gated_operator.DECODE[-1]
    assert gated_operator.fits(tile, gated, 16, target)
    tree = tree_operator.TreeProblem(128, 512, 8, BF16, FP32)
    leaves = tree_operator.tiles_for(tree, 16)[-1]
    assert leaves.fits(tree, 16, target)
    for source in (gated_operator.fused_source(tile, gated, 16), leaves.source(tree, 16)):
        texts = texts_of(source, target)
        if "ptx" in texts:
            assert fusable_operations(texts["ptx"]) == []
            assert estimates(texts["ptx"]) == []


def test_a_tree_adds_its_leaves() -> None:
    """Every fold is there: the compiler does not run one leaf's sum on into the next (the accumulators of a tile of
    32 x 32 are 8 a thread, and a leaf's end has three sums)."""
    tree = tree_operator.TreeProblem(128, 512, 8, BF16, FP32)
    ptx = texts_of(tree_operator.tiles_for(tree, 16)[-1].source(tree, 16), "sm_90")["ptx"]
    assert ptx.count("add.rn.f32") == 3 * 8
    alone = tree_operator.TreeProblem(128, 64, 1, BF16, FP32)
    ptx = texts_of(tree_operator.tiles_for(alone, 16)[-1].source(alone, 16), "sm_90")["ptx"]
    assert ptx.count("add.rn.f32") == 0


@pytest.mark.parametrize("leaves", [1, 2, 4, 8])
def test_groups_of_a_tile_for_hopper_sum_leaves_apart(leaves: int) -> None:
    """Products of one leaf run on while the last is taken in, and no sum leaves the registers but where it is said."""
    tile = Tile(128, 128, 64, 4, 4, HOPPER)
    problem = GemmProblem(4096, 4096, BF16, BF16)
    assert tile.fits(problem, 1024, "sm_90")
    assert not tile.fits(problem, 1024, "sm_100")
    assert not tile.fits(ODD, 1024, "sm_90")
    ptx = texts_of(tile.source(problem, 1024, leaves), "sm_90")["ptx"]
    assert fusable_operations(ptx) == []
    assert estimates(ptx) == []
    assert "wgmma.wait_group.sync.aligned 1" in ptx
    # Two groups of four warps, 64 sums a thread, one addition for each level of the tree.
    assert ptx.count("add.rn.f32") == 2 * 64 * {1: 0, 2: 1, 4: 2, 8: 3}[leaves]


@pytest.mark.parametrize("leaves", [1, 2, 4])
@pytest.mark.parametrize("tile", tree_pushed.TILES, ids=lambda tile: tile.name)
def test_products_that_push_sum_leaves_apart_and_write_wide(
    tile: tree_pushed.PushedTile, leaves: int
) -> None:
    problem = tree_operator.TreeProblem(5120, 6400, leaves, BF16, FP32)
    assert tile.fits(problem, max(128, tile.least_rows), "sm_90")
    ptx = texts_of(tile.source(problem), "sm_90")["ptx"]
    assert fusable_operations(ptx) == []
    assert estimates(ptx) == []
    assert ptx.count("add.rn.f32") == tile.groups * tile.columns // 2 * {1: 0, 2: 1, 4: 2}[leaves]
    assert ("st.global.v4.b32" if tile.flat else "st.global.v2.b32") in ptx
    assert "st.global.b32" not in ptx


def test_products_that_push_declare_where_they_run() -> None:
    tile = tree_pushed.TILES[0]
    assert tile.fits(tree_operator.TreeProblem(5120, 6400, 2, BF16, FP32), 1024, "sm_90")
    assert not tile.fits(tree_operator.TreeProblem(5120, 6400, 2, BF16, FP32), 1024, "sm_100")
    assert not tile.fits(tree_operator.TreeProblem(5120, 6400, 2, BF16, BF16), 1024, "sm_90")
    assert not tile.fits(tree_operator.TreeProblem(5120, 25600, 8, BF16, FP32), 1024, "sm_90")
    assert not tile.fits(tree_operator.TreeProblem(5120, 64, 2, BF16, FP32), 1024, "sm_90"), (
        "leaves of half a block"
    )


@pytest.mark.parametrize("bucket", [bucket for bucket in BUCKETS if bucket > 64])
def test_products_of_every_bucket_have_a_tile_that_pushes(bucket: int) -> None:
    for leaves in (1, 2, 4):
        problem = tree_operator.TreeProblem(5120, 6400, leaves, BF16, FP32)
        fitting = [tile.name for tile in tree_pushed.TILES if tile.fits(problem, bucket, "sm_90")]
        assert fitting and (len(fitting) == 1) == (bucket >= 768)


@pytest.mark.parametrize("leaves", [1, 8])
@pytest.mark.parametrize("wait", [0, 1, 2])
def test_weights_are_asked_for_ahead_of_the_wait_and_x_behind_it(leaves: int, wait: int) -> None:
    tile = Tile(16, 64, 128, 4, 8, AHEAD, swap=True, wait=wait)
    assert tile.fits(EVEN, 16, "sm_90")
    assert not tile.fits(EVEN, 32, "sm_90"), "a program computes all rows"
    ptx = texts_of(tile.source(EVEN, 16, leaves), "sm_90")["ptx"]
    assert fusable_operations(ptx) == []
    assert ("griddepcontrol.wait" in ptx) == ("griddepcontrol.launch_dependents" in ptx) == (wait > 0)
    if wait:
        # The wait may stand in the text once more, for programs without any block.
        ahead, behind = ptx.split("griddepcontrol.wait", 1)
        # A copy of 128 elements of K is two of 64: x and weights of every slot come behind the wait.
        assert ahead.count("cp.async.bulk.tensor") == 2
        assert behind.count("cp.async.bulk.tensor") == 6
        assert "ld.global" not in ptx
    assert ptx.count("add.rn.f32") == (8 * 3 if leaves == 8 else 0)


@pytest.mark.parametrize("leaves", [1, 8])
@pytest.mark.parametrize(
    "tile",
    [
        *(tile for tile in (*DECODE, *DECODE_32, *DECODE_64) if tile.kind == AHEAD),
        *(one.tile for one in tree_operator.MIDDLE if one.tile.kind == HOPPER),
    ],
    ids=lambda tile: tile.name,
)
def test_tensor_core_products_stay_in_flight(tile: Tile, leaves: int) -> None:
    """Of a group's waits one stands in the loop and one behind it. The assembler adds others where it takes an
    accumulator to be in use, without a word, and a kernel then takes twice as long."""
    groups = 1 if tile.kind == AHEAD else tile.rows // 64
    machine_code = texts_of(tile.source(EVEN, tile.rows, leaves), "sm_90")["sass"]
    assert machine_code.count("WARPGROUP.DEPBAR") == 2 * groups < machine_code.count("HGMMA")


def representatives() -> list[tuple[Tile, int]]:
    """One tile of each kind, side and way of waiting, with a bucket that it meets."""
    found: dict[tuple[object, ...], tuple[Tile, int]] = {}
    listed = [(tile, 1) for tile in DECODE if tile.kind != AHEAD]
    listed += [(tile, 128) for tile in MIDDLE] + [(tile, 1024) for tile in PREFILL]
    for tile, bucket in listed:
        found.setdefault((tile.kind, tile.swap, tile.wait, tile.prefetch > 0), (tile, bucket))
    return list(found.values())


@pytest.mark.parametrize(("tile", "bucket"), representatives(), ids=str)
def test_every_kind_of_tile_compiles_for_hopper_and_leaves_nothing_to_fuse(tile: Tile, bucket: int) -> None:
    assert tile.fits(EVEN, bucket, "sm_90")
    ptx = texts_of(tile.source(EVEN, bucket), "sm_90")["ptx"]
    assert fusable_operations(ptx) == []
    assert estimates(ptx) == []
    assert ("griddepcontrol.wait" in ptx) == (tile.wait > 0)
    if tile.wait:
        ahead, behind = ptx.split("griddepcontrol.wait")
        assert "ld.global" not in ahead, "a load before the wait may read what the kernel ahead still writes"
        assert "cp.async.c" not in ahead
        assert "cp.async.bulk.tensor" not in ahead
        assert "cp.async" in behind
        assert ("prefetch" in ahead) == (tile.prefetch > 0)


def test_a_bias_is_one_rounded_sum() -> None:
    ptx = texts_of(PLAIN.source(ODD, 1), "sm_90")["ptx"]
    assert "add.rn.f32" in ptx
    assert fusable_operations(ptx) == []


def test_fusion_would_be_noticed() -> None:
    """The inverse: without the option, the same sum is left to the assembler."""
    from triton.compiler import ASTSource, compile

    source = PLAIN.source(ODD, 1)
    names = source.function.arg_names
    types = dict(zip(names, (*source.arguments, *["constexpr"] * len(source.constants)), strict=True))
    constants = dict(zip(names[len(source.arguments) :], source.constants, strict=True))
    fused = compile(
        ASTSource(source.function, types, constants),
        target=TARGETS["sm_90"],
        options={"num_warps": 4, "enable_fp_fusion": True},
    )
    assert fusable_operations(fused.asm["ptx"]) != []


def test_run_time_lengths_do_not_make_binaries() -> None:
    """One description of a kernel serves every shape with the same edges."""
    tile = MIDDLE[0]
    sources = {
        tile.source(GemmProblem(columns, depth, BF16, BF16), bucket)
        for columns in (4096, 6144, 24576)
        for depth in (4096, 12288)
        for bucket in (64, 128, 256)
    }
    assert len(sources) == 1


@pytest.mark.parametrize("kind", [DESCRIPTORS, PERSISTENT])
def test_tiles_with_descriptors_declare_where_they_run(kind: str) -> None:
    tile = Tile(64, 128, 64, 4, 3, kind)
    assert not tile.fits(EVEN, 64, "sm_80")
    assert not tile.fits(EVEN, 64, "gfx942")
    assert not tile.fits(GemmProblem(64, 41, BF16, BF16), 64, "sm_90"), "rows of 82 bytes are not aligned"


def test_every_shape_has_a_portable_tile() -> None:
    for problem in (EVEN, ODD, GemmProblem(37, 41, FP16, FP32)):
        for target in PORTABLE:
            assert PLAIN.fits(problem, 1, target)


def row_parallel_shapes() -> list[tuple[int, int]]:
    """(columns, depth) of the attention output and down matrices of the shapes that come with the package."""
    shapes = set()
    for file in (Path(samebits.__file__).parent / "models" / "shapes").glob("*/config.json"):
        config = json.loads(file.read_text())
        width, heads = config["hidden_size"], config["num_attention_heads"]
        attention = heads * config.get("head_dim", width // heads)
        shapes |= {(width, attention), (width, config["intermediate_size"])}
    return sorted(shape for shape in shapes if shape[1] % (8 * 2 * 128) == 0 or shape[1] >= 4096)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_row_parallel_product_has_a_tile_beside_the_last_ones(ranks: int) -> None:
    shapes = row_parallel_shapes()
    assert (5120, 25600) in shapes
    for columns, depth in shapes:
        out = BF16 if ranks == 1 else FP32
        problem = tree_operator.TreeProblem(columns, depth // ranks, 8 // ranks, BF16, out)
        problem.check()
        for bucket in BUCKETS:
            tiles = [
                tile
                for tile in tree_operator.tiles_for(problem, bucket)
                if tile not in tree_operator.LAST and tile.fits(problem, bucket, "sm_90")
            ]
            assert tiles, f"{problem.key} at {bucket} rows"
            assert all(tile.fits(problem, bucket, "sm_90") for tile in tree_operator.LAST)


@pytest.mark.parametrize(
    ("columns", "rows", "early"),
    [
        (4096, 16, True), (5120, 64, True), (6144, 64, True), (24576, 32, True), (28672, 64, True), (51200, 64, True),
        (10240, 16, True), (10240, 32, False), (10240, 64, False), (6144, 96, False),
    ],
)  # fmt: skip
def test_kernels_that_start_early_stand_alone_or_not_at_all(columns: int, rows: int, early: bool) -> None:
    """10,240 columns are 160 tiles: with more than 16 rows most multiprocessors would wait for the second of 28."""
    tiles = tiles_on(GemmProblem(columns, 4096, BF16, BF16), rows, "sm_90")
    kinds = {tile.kind for tile in tiles if tile != PLAIN}
    assert kinds == {AHEAD} if early else AHEAD not in kinds
