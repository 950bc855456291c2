"""The GEMM clause: the prover rejects planted wrong kernels, takes right ones, and results are near float64's."""

from __future__ import annotations

import os

import pytest
import torch
from gemm_mutants import MUTANTS, RIGHT, SHIFTED, mutant_candidate

from samebits.errors import NumericsError
from samebits.numerics import reference
from samebits.numerics.gpu import cublaslt, gemm_candidates
from samebits.numerics.gpu.gemm_candidates import (
    AHEAD,
    DECODE,
    DECODE_32,
    DECODE_64,
    DESCRIPTORS,
    HOPPER,
    PERSISTENT,
    Tile,
    launch_tile,
    library_recipes,
)
from samebits.numerics.gpu.gemm_operator import GemmOperator, product_trials, reference_candidate
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.graph_nodes import captured_nodes, unknown_nodes
from samebits.numerics.gpu.launch import load, target_name
from samebits.numerics.gpu.norm import rms_norm
from samebits.numerics.gpu.prover import Candidate, Proof, Rejection, Tensors, Trial

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ATOMS_OF_ONE = (5,)
"""Mutants of the atom itself, which the interpreter's atoms (numpy's dot) do not show."""


def trial_of(problem: GemmProblem, rows: int, device: torch.device, largest: int = 0) -> Trial:
    return product_trials(problem, max(rows, largest), device).trial(rows)


def problems(dtypes: list[torch.dtype]) -> list[GemmProblem]:
    return [GemmProblem(64, 208, act, out) for act in dtypes for out in {act, torch.float32}]


@pytest.fixture
def rows() -> int:
    return 20 if INTERPRETED else 256


def check_every_mutant_is_rejected(device: torch.device, dtypes: list[torch.dtype], rows: int) -> None:
    kept = []
    for problem in problems(dtypes):
        trial = trial_of(problem, rows, device)
        for name, mutant in MUTANTS.items():
            if INTERPRETED and mutant in ATOMS_OF_ONE:
                continue
            if name == "accumulation in the activation type" and problem.act is torch.float32:
                continue
            if name == "half atoms" and problem.act is torch.float32:
                continue  # an atom of float32 is one product
            verdict = trial.prove(mutant_candidate(problem, mutant))
            if not isinstance(verdict, Rejection) or verdict.difference is None:
                kept.append(f"{problem.key}: {name}: {verdict}")
    assert not kept, "\n".join(kept)


def check_a_single_row_shows_every_mutant(device: torch.device) -> None:
    if INTERPRETED:
        pytest.skip("one row of few columns is too little data for a proof")
    kept = []
    for out in (torch.bfloat16, torch.float32):
        problem = GemmProblem(4096, 4096, torch.bfloat16, out)
        trial = trial_of(problem, 1, device, largest=16)
        for name, mutant in MUTANTS.items():
            if mutant in (8, SHIFTED):
                continue  # need a neighbour
            if isinstance(trial.prove(mutant_candidate(problem, mutant)), Proof):
                kept.append(f"{problem.key}: {name}")
    assert not kept, "\n".join(kept)


def check_the_right_order_is_proven(device: torch.device, dtypes: list[torch.dtype], rows: int) -> None:
    for problem in problems(dtypes):
        verdict = trial_of(problem, rows, device).prove(mutant_candidate(problem, RIGHT))
        assert isinstance(verdict, Proof), verdict


def tile_candidate(tile: Tile, problem: GemmProblem, rows: int) -> Candidate:
    kernel = load(tile.source(problem, rows))

    def run(inputs: Tensors, outputs: Tensors) -> None:
        launch_tile(kernel, tile, problem, inputs, outputs)

    return Candidate(tile.name, kernel.digest, run)


SMALL_TILES = (
    Tile(16, 32, 64, 4, 3),
    Tile(16, 64, 32, 4, 2, swap=True),
    Tile(32, 32, 16, 4, 1, group=2),
    Tile(16, 32, 64, 4, 3, DESCRIPTORS, swap=True),
    Tile(32, 32, 32, 4, 3, DESCRIPTORS),
    Tile(32, 64, 32, 4, 3, PERSISTENT),
)


@pytest.mark.parametrize("tile", SMALL_TILES, ids=lambda tile: tile.name)
@pytest.mark.parametrize("shape", [(64, 128), (70, 72), (37, 41)], ids=str)
def check_tiles_are_near_float64(
    tile: Tile, shape: tuple[int, int], device: torch.device, dtypes: list[torch.dtype]
) -> None:
    """Every edge: rows, columns and depth that no tile divides."""
    bias = shape[0] % 2 == 1
    generator = torch.Generator().manual_seed(3)
    for act in dtypes:
        problem = GemmProblem(*shape, act, torch.float32, bias)
        if tile.kind != "tile" and (shape[1] * act.itemsize % 16 or act is torch.float32):
            continue
        for rows in (1, 19):
            x = torch.randn(rows, shape[1], generator=generator).to(device, act)
            weight = torch.randn(shape, generator=generator).to(device, act)
            addend = torch.randn(shape[0], generator=generator).to(device, act) if bias else None
            out = torch.full((rows, shape[0]), float("nan"), device=device)
            inputs = (x, weight) if addend is None else (x, weight, addend)
            tile_candidate(tile, problem, rows).run(inputs, (out,))
            expected = reference.gemm(x, weight, addend)
            bound = 8 * reference.gemm_bound(x, weight, addend)
            error = (out.double() - expected).abs()
            assert bool((error <= bound).all()), f"{problem.key} at {rows} rows: {error.max()}"


EARLY = tuple(tile for tile in (*DECODE, *DECODE_32, *DECODE_64) if tile.kind == AHEAD)
HOPPER_TILES = (
    Tile(128, 256, 64, 4, 4, HOPPER),
    Tile(128, 128, 64, 4, 6, HOPPER),
    Tile(128, 64, 64, 4, 8, HOPPER),
    Tile(64, 256, 64, 4, 5, HOPPER),
    Tile(64, 128, 64, 4, 9, HOPPER),
    Tile(64, 128, 128, 4, 4, HOPPER),
    Tile(16, 64, 128, 4, 8, AHEAD, swap=True),
    Tile(64, 128, 64, 4, 8, AHEAD, swap=True, wait=1),
    Tile(32, 64, 256, 4, 4, AHEAD, swap=True, wait=2),
)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter knows no Gluon")
@pytest.mark.parametrize("tile", HOPPER_TILES, ids=lambda tile: tile.name)
def check_tiles_for_hopper_have_the_reference_bits(tile: Tile, device: torch.device) -> None:
    """More tiles than programs, rows and columns that no tile divides, and rings longer than K."""
    for act, columns, depth in ((torch.bfloat16, 17024, 256), (torch.float16, 512, 2048)):
        columns += 0 if tile.wait else 24
        rows = 300 if tile.kind == HOPPER else tile.rows - 3
        for out in (act, torch.float32):
            problem = GemmProblem(columns, depth, act, out)
            if not tile.fits(problem, rows, target_name()):
                pytest.skip(f"{tile.name} is not for {target_name()}")
            verdict = trial_of(problem, rows, device).prove(tile_candidate(tile, problem, rows))
            assert isinstance(verdict, Proof), f"{problem.key}: {verdict}"


@pytest.mark.skipif(INTERPRETED, reason="graphs are captured on a GPU")
@pytest.mark.parametrize(
    "tile",
    [*EARLY, *HOPPER_TILES[-2:], Tile(16, 64, 128, 4, 6, swap=True, wait=1)],
    ids=lambda tile: tile.name,
)
def check_products_that_start_early_read_nothing_stale(tile: Tile, device: torch.device) -> None:
    """Norms and products in turns, each reading what the one ahead wrote, replayed with new inputs."""
    rows, width, layers = 13, 1024, 12
    problem = GemmProblem(width, width, torch.bfloat16, torch.bfloat16)
    if not tile.fits(problem, rows, target_name()):
        pytest.skip(f"{tile.name} is not for {target_name()}")
    weights = [torch.randn(width, width, device=device).mul_(width**-0.5).bfloat16() for _ in range(layers)]
    scale = torch.ones(width, device=device).bfloat16()
    x = torch.empty(rows, width, device=device).bfloat16()
    states = [torch.empty_like(x) for _ in range(2 * layers)]

    def run(candidate: Candidate, apart: bool) -> None:
        source = x
        for layer, weight in enumerate(weights):
            normed, result = states[2 * layer], states[2 * layer + 1]
            rms_norm(source, scale, 1e-6, normed)
            if apart:
                torch.cuda.synchronize()
            candidate.run((normed, weight), (result,))
            source = result

    expected = []
    for number in range(8):
        x.normal_(generator=torch.Generator(device).manual_seed(number))
        run(reference_candidate(problem), apart=True)
        expected.append(states[-1].clone())
    candidate = tile_candidate(tile, problem, rows)
    run(candidate, apart=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(candidate, apart=False)
    for number in reversed(range(8)):
        for state in states:
            state.fill_(float("nan"))
        x.normal_(generator=torch.Generator(device).manual_seed(number))
        graph.replay()
        assert torch.equal(states[-1].view(torch.int16), expected[number].view(torch.int16)), number
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.skipif(INTERPRETED, reason="graphs are captured on a GPU")
@pytest.mark.parametrize("source", ["tile", "library"])
def check_captured_kernels_are_the_proven_ones(source: str, device: torch.device) -> None:
    problem = GemmProblem(512, 1024, torch.bfloat16, torch.bfloat16)
    if source == "tile":
        candidate = tile_candidate(Tile(16, 64, 64, 4, 4), problem, 16)
        other = tile_candidate(Tile(16, 32, 64, 4, 4), problem, 16)
    else:
        candidate = next(iter(library_recipes(problem, 16, 1))).make()
        other = tile_candidate(Tile(16, 32, 64, 4, 4), problem, 16)
    x = torch.randn(16, 1024, device=device).bfloat16()
    weight = torch.randn(512, 1024, device=device).bfloat16()
    out = torch.empty(16, 512, device=device, dtype=torch.bfloat16)

    def run(which: Candidate) -> None:
        which.run((x, weight), (out,))

    for which in (candidate, other):
        run(which)
    torch.cuda.synchronize()
    proven = captured_nodes(lambda: run(candidate))
    assert len(proven) == 1
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        run(candidate)
        run(other)
    assert [node.handle for node in unknown_nodes(graph, proven)] == [
        node.handle for node in captured_nodes(lambda: run(other))
    ]


@pytest.mark.skipif(INTERPRETED, reason="the library runs on a GPU")
def check_the_library_splits_k_only_where_it_may(device: torch.device) -> None:
    """Algorithms come back by their bytes, none of them divides K, and all give the reference's bits."""
    for problem in (
        GemmProblem(4096, 4096, torch.bfloat16, torch.bfloat16),
        GemmProblem(512, 2048, torch.float16, torch.float32, bias=False),
        GemmProblem(512, 2048, torch.bfloat16, torch.bfloat16, bias=True),
    ):
        trial = trial_of(problem, 64, device)
        recipes = list(library_recipes(problem, 64, 4))
        assert recipes
        verdicts = [trial.prove(recipe.make()) for recipe in recipes]
        assert any(isinstance(verdict, Proof) for verdict in verdicts), verdicts
        assert all(not cublaslt.splits(cublaslt.algorithm_of(v.identity.split()[-1])) for v in verdicts)


@pytest.mark.skipif(INTERPRETED, reason="the library runs on a GPU")
def check_a_product_may_be_done_in_parts(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm_candidates, "PARTED_ROWS", 64)
    problem = GemmProblem(1024, 8192, torch.bfloat16, torch.bfloat16)
    assert not list(gemm_candidates.parted_recipes(problem, 32, 2))
    trial = trial_of(problem, 64, device)
    candidates = [recipe.make() for recipe in gemm_candidates.parted_recipes(problem, 64, 2)]
    assert {candidate.name for candidate in candidates} >= {"cublaslt 0 in 2", "cublaslt 0 in 4"}
    assert any(isinstance(trial.prove(candidate), Proof) for candidate in candidates)
    for candidate in candidates:
        again = GemmOperator(device).restore(problem, 64, candidate.name, candidate.identity)
        assert again is not None and again.make().identity == candidate.identity
    # The inverse: parts in the wrong order show.
    first = candidates[0]

    def turned(inputs: Tensors, outputs: Tensors) -> None:
        first.run(inputs, outputs)
        outputs[0].copy_(outputs[0].roll(32, 0))

    assert not isinstance(trial.prove(Candidate("turned", "turned", turned)), Proof)


@pytest.mark.skipif(INTERPRETED, reason="the library runs on a GPU")
def check_tiles_of_the_library_that_fill_the_card_are_proven(device: torch.device) -> None:
    problem = GemmProblem(5120, 1024, torch.bfloat16, torch.bfloat16)
    trial = trial_of(problem, 192, device)
    recipes = list(library_recipes(problem, 192, 2))
    assert len(recipes) > 2, "proposals only"
    for recipe in recipes:
        verdict = trial.prove(recipe.make())
        assert isinstance(verdict, Proof), verdict
        assert not cublaslt.splits(cublaslt.algorithm_of(verdict.identity.split()[-1]))


@pytest.mark.skipif(INTERPRETED, reason="alignment matters on a GPU")
def check_an_offset_pointer_is_refused(device: torch.device) -> None:
    problem = GemmProblem(512, 1024, torch.bfloat16, torch.bfloat16)
    weight = torch.randn(512, 1024, device=device).bfloat16()
    x = torch.randn(16 * 1024 + 1, device=device).bfloat16()[1:].view(16, 1024)
    out = torch.empty(16, 512, device=device, dtype=torch.bfloat16)
    tile = tile_candidate(Tile(16, 64, 64, 4, 4), problem, 16)
    for candidate in (tile, next(iter(library_recipes(problem, 16, 1))).make()):
        with pytest.raises(NumericsError, match="16 bytes"):
            candidate.run((x, weight), (out,))
