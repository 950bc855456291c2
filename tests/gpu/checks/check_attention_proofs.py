"""The prover takes every launch of the attention kernels, and rejects planted wrong orders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from attention_mutants import MUTANTS, ONLY_IN_HALF, RIGHT, mutant_candidate

from conftest import INTERPRETED
from samebits.errors import NumericsError
from samebits.numerics.gpu import attention_operator as operator_module
from samebits.numerics.gpu.attention import default_ranges
from samebits.numerics.gpu.attention_operator import (
    TILE_ROWS,
    TILES,
    AttentionOperator,
    AttentionProblem,
    Ragged,
    context_of,
    make_case,
    proof_cases,
    prove_defaults,
    range_candidate,
    reference_candidate,
    tile_candidate,
    units_of,
    with_fewer_programs,
)
from samebits.numerics.gpu.attention_prefill import HopperLaunch, tiles
from samebits.numerics.gpu.attention_shape import AttentionShape
from samebits.numerics.gpu.bindings import compile_all
from samebits.numerics.gpu.foreseen import attention_sources
from samebits.numerics.gpu.launch import KernelSource, target_name
from samebits.numerics.gpu.prover import Candidate, Case, Proof, Rejection, Tensors, Trial
from samebits.numerics.operators import HeadLayout

SMALL = Ragged((0, 580), (2, 1))
BUCKETS = (TILES, 1, 4)


def compile_together(sources: Iterable[KernelSource]) -> None:
    """Side by side: one after another, the thirty kernels of a case take about a minute."""
    compile_all(sources, lambda stage, done, total: None)


def problem_of(act: torch.dtype, group: int = 4, head_dim: int = 128) -> AttentionProblem:
    heads = HeadLayout(2, 1, 16) if INTERPRETED else HeadLayout(2 * group, 2, head_dim)
    return AttentionProblem(AttentionShape(heads, 64), act)


def cases_of(problem: AttentionProblem, bucket: int, device: torch.device) -> list[Case]:
    if INTERPRETED:
        return [make_case(problem, kind, SMALL, 5, device) for kind in ("sharp", "cancelling")]
    return proof_cases(problem, bucket, device)


def check_every_mutant_is_rejected(device: torch.device, dtypes: list[torch.dtype]) -> None:
    kept = []
    for act in dtypes[:1] if INTERPRETED else dtypes:
        problem = problem_of(act)
        trial = Trial.of(reference_candidate(problem), cases_of(problem, TILES, device))
        right = trial.prove(mutant_candidate(problem, RIGHT))
        assert isinstance(right, Proof), right
        for name, mutant in MUTANTS.items():
            if act == torch.float32 and mutant in ONLY_IN_HALF:
                continue
            verdict = trial.prove(mutant_candidate(problem, mutant))
            if not isinstance(verdict, Rejection) or verdict.difference is None:
                kept.append(f"{problem.key}: {name}: {verdict}")
    assert not kept, "\n".join(kept)


@pytest.mark.skipif(INTERPRETED, reason="launches differ in nothing that the interpreter knows")
@pytest.mark.parametrize(("group", "head_dim"), [(4, 128), (5, 64), (7, 128), (1, 256), (8, 64)])
def check_every_launch_is_proven(
    group: int, head_dim: int, device: torch.device, dtypes: list[torch.dtype]
) -> None:
    operator = AttentionOperator(device)
    problems = [problem_of(act, group, head_dim) for act in dtypes[1:]]
    compile_together(source for problem in problems for source in operator.sources(problem, BUCKETS))
    refused = []
    for problem in problems:
        for found in operator.rounds(problem, BUCKETS):
            for recipe in operator.recipes(problem, found.bucket):
                try:
                    verdict = found.trial.prove(recipe.make())
                except Exception as error:
                    refused.append(f"{recipe.name}: {error!r:.200}")
                    continue
                if not isinstance(verdict, Proof):
                    refused.append(f"{problem.act} bucket {found.bucket} {recipe.name}: {verdict.reason}")
    wrong = [line for line in refused if "out of resource" not in line and "shared memory" not in line]
    assert not wrong, "\n".join(wrong)


def with_two_blocks_swapped(problem: AttentionProblem, launch: HopperLaunch) -> Candidate:
    """The kernel for Hopper, told that the first two pages of every request lie in each other's place: where every
    row sees both, the same keys in another order."""

    def run(inputs: Tensors, outputs: Tensors) -> None:
        context = context_of(inputs)
        table = context.page_table.clone()
        table[:, :2] = context.page_table[:, :2].flip(1)
        units = units_of(inputs, 1 + TILE_ROWS.index(launch.rows))
        swapped = replace(context, page_table=table)
        tiles(problem.shape, inputs[0], swapped, units, problem.scale, outputs[0], launch)

    return Candidate("two key blocks swapped", "", run)


@pytest.mark.skipif(INTERPRETED, reason="there is no interpreter for Gluon")
def check_wrong_orders_of_the_kernel_for_hopper_are_rejected(device: torch.device) -> None:
    if target_name() != "sm_90":
        pytest.skip("the kernel is for Hopper")
    launch = HopperLaunch()
    for act in (torch.bfloat16, torch.float16):
        problem = problem_of(act)
        shape = problem.shape
        seen_by_all = Ragged((2 * shape.split_tokens, 4 * shape.split_tokens - 3), (130, 70))
        cases = [make_case(problem, kind, seen_by_all, 9, device) for kind in ("sharp", "cancelling")]
        trial = Trial.of(reference_candidate(problem), cases)
        right = trial.prove(tile_candidate(problem, launch))
        assert isinstance(right, Proof), right
        wrong = [with_two_blocks_swapped(problem, launch)]
        for split in (shape.split_tokens // 2, 2 * shape.split_tokens, 64 * shape.split_tokens):
            other = replace(problem, shape=replace(shape, split_tokens=split))
            wrong.append(tile_candidate(other, launch))
        for candidate in wrong:
            verdict = trial.prove(candidate)
            assert isinstance(verdict, Rejection), candidate.name
            assert verdict.difference is not None, verdict.error


@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (4, 128), (5, 64), (7, 128)])
@pytest.mark.skipif(INTERPRETED, reason="takes minutes in the interpreter")
def check_what_the_engine_uses_is_proven(
    group: int, head_dim: int, device: torch.device, dtypes: list[torch.dtype]
) -> None:
    shapes = {act: problem_of(act, group, head_dim).shape for act in dtypes[1:]}
    compile_together(source for act, shape in shapes.items() for source in attention_sources(shape, act, 132))
    for act, shape in shapes.items():
        ranges = {
            default_ranges(shape, act, 1, units, 132, ranged=ranged)
            for units in range(1, 257)
            for ranged in (False, True)
        }
        assert any(launch.specialised for launch in ranges) == (target_name() == "sm_90")
        launches = [launch for one in ranges for launch in with_fewer_programs(shape, one)]
        assert len(prove_defaults(shape, act, 132, device)) == 1 + len(launches)


@pytest.mark.skipif(INTERPRETED, reason="there is no interpreter for Gluon")
def check_a_wrong_order_of_the_ranges_for_hopper_is_rejected(device: torch.device) -> None:
    """Two pages of a request in each other's place: the same keys in another order."""
    if target_name() != "sm_90":
        pytest.skip("the kernel is for Hopper")
    problem = problem_of(torch.bfloat16)
    launch = default_ranges(problem.shape, problem.act, 1, 1, 132)
    assert launch.specialised
    long = Ragged((1023, 2047, 8191), (1, 1, 1))
    cases = [make_case(problem, kind, long, 9, device) for kind in ("sharp", "cancelling")]
    trial = Trial.of(reference_candidate(problem), cases)
    right = range_candidate(problem, 1, launch, 3, device)
    assert isinstance(trial.prove(right), Proof)
    for first, second in ((0, 1), (0, 4), (7, 8)):

        def run(inputs: Tensors, outputs: Tensors, pages: list[int] = [first, second]) -> None:  # noqa: B006
            table = inputs[4].clone()
            table[:, pages] = inputs[4][:, pages[::-1]]
            right.run((*inputs[:4], table, *inputs[5:]), outputs)

        verdict = trial.prove(Candidate("pages swapped", "", run))
        assert isinstance(verdict, Rejection) and verdict.difference is not None


def check_a_wrong_default_is_refused(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(torch.float32)
    monkeypatch.setattr(operator_module, "proof_cases", lambda *rest: cases_of(problem, TILES, device))
    monkeypatch.setattr(
        operator_module, "tile_candidate", lambda problem, launch: mutant_candidate(problem, 1)
    )
    with pytest.raises(NumericsError, match=r"mutant 1 is not proven: case .* expected 0x"):
        prove_defaults(problem.shape, torch.float32, 8, device)
