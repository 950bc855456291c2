"""Claimed splits: the table says what the units ask for, and on Hopper the kernel has the reference's bits."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch

from conftest import INTERPRETED
from samebits.numerics.gpu import attention, attention_claimed
from samebits.numerics.gpu.attention import claiming_launch, claims_cut
from samebits.numerics.gpu.attention_claimed import MOST_SPLITS, RUNS_OF_PROGRAM, ClaimBuffers
from samebits.numerics.gpu.attention_claims import ENDS, GOES_ON, IS_PARTIAL, LAST_EPOCH
from samebits.numerics.gpu.attention_operator import (
    UNIT_INPUTS,
    AttentionProblem,
    Ragged,
    make_case,
    proof_cases,
    range_candidate,
    reference_candidate,
    units_of,
)
from samebits.numerics.gpu.attention_plan import Units
from samebits.numerics.gpu.attention_shape import AttentionShape, Context
from samebits.numerics.gpu.launch import target_name
from samebits.numerics.gpu.prover import Proof, Trial
from samebits.numerics.operators import HeadLayout

SHAPE = AttentionShape(HeadLayout(4, 2, 16), 64)
LONG, SHORT = (5000, 9000, 7, 9000, 8192, 300), (700, 300, 512, 700)
BATCHES = (
    ((1000, 300, 5, 2000), (1, 1, 1, 1), 4096, 4, "cut"),
    ((1000, 300, 5, 2000), (1, 1, 1, 1), 20, 4, "whole"),
    ((1000, 300, 5, 2000), (1, 1, 1, 1), 4096, 3, 1),
    ((1000, 300, 5, 2000), (1, 1, 1, 1), 20, 3, 3),
    ((1000, 300, 5, 20000), (1, 0, 1, 1), 4096, 3, "cut"),
    (SHORT, (1, 0, 1, 1), 4096, 3, "whole"),
    ((256,), (1,), 4096, 3, "cut"),
    ((1025,), (1,), 4096, 3, "cut"),
    ((7,), (0,), 4096, 3, "whole"),
    (LONG, (1, 1, 1, 1, 1, 1), 4096, 3, 8),
    (LONG, (1, 1, 0, 1, 1, 1), 4096, 7, 6),
    (LONG, (1, 1, 1, 1, 1, 1), 32, 3, 13),
    ((4000, 4000, 4000, 2000, 600), (1, 1, 1, 1, 1), 4096, 5, 3),
)
"""(lengths, rows) of units, partials that have room, programs, how pairs are claimed: splits of a run where they are
chained"""


def shared_out(splits: Sequence[int], capacity: int, programs: int) -> tuple[str, int]:
    """How pairs are claimed, and splits of a run."""
    length, longest = 2 * sum(splits), max(splits)
    pairs = 2 * sum(count > 0 for count in splits)
    most = -(-pairs // programs) * longest
    room = capacity - pairs
    if 5 * most * programs <= 6 * length:
        return "whole", max(longest, 1)
    if length >= programs * longest and room > 0:
        fair = min(max(length // (programs * RUNS_OF_PROGRAM), 1), MOST_SPLITS)
        return "chained", min(max(fair, -(-length // room)), longest)
    return ("cut", 1) if length <= capacity else ("whole", longest)


def claims_in_order(splits: Sequence[int], how: str, run: int) -> list[tuple[int, int]]:
    """(unit, run) in the order in which they are claimed."""
    runs = [-(-count // run) for count in splits]
    found = [(unit, number) for unit, count in enumerate(runs) for number in range(count)]
    if how == "cut":
        return sorted(found, key=lambda one: (one[1], one[0]))
    return sorted(
        found, key=lambda one: (Fraction(2 * one[1] + 1, 2 * runs[one[0]]), -splits[one[0]], one[0])
    )


def planned(
    lengths: tuple[int, ...], counts: tuple[int, ...], capacity: int, programs: int, device: torch.device
) -> tuple[ClaimBuffers, torch.Tensor]:
    """A step's table of claims, over pages of shuffled numbers, whose requests stand in reverse order."""
    rows = torch.arange(len(lengths), dtype=torch.int32, device=device)
    pages = torch.randperm(len(lengths) * 400, generator=torch.Generator().manual_seed(1)).int()
    table = pages.view(len(lengths), 400).to(device)
    units = Units(rows, torch.tensor(counts, dtype=torch.int32, device=device), rows.flip(0).contiguous())
    buffers = attention_claimed.claim_buffers(SHAPE, len(lengths), 1, programs, capacity, device)
    buffers.words.fill_(7)
    positions = torch.tensor(lengths, device=device) - 1
    attention_claimed.plan(SHAPE, positions, table, units, buffers, programs)
    return buffers, table


@pytest.mark.parametrize(("lengths", "counts", "capacity", "programs", "way"), BATCHES, ids=str)
def check_the_table_of_claims(
    lengths: tuple[int, ...],
    counts: tuple[int, ...],
    capacity: int,
    programs: int,
    way: str | int,
    device: torch.device,
) -> None:
    """Every run of every unit, in the order that suits: first splits of all units ahead of second ones, or each unit's
    runs spread over all claims."""
    splits = [-(-length // 256) if count else 0 for length, count in zip(lengths, counts, strict=True)]
    how, run = shared_out(splits, capacity, programs)
    assert way == (run if how == "chained" else how)
    runs = [-(-count // run) for count in splits]
    buffers, pages = planned(lengths, counts, capacity, programs, device)
    assert buffers.split_start.tolist() == [sum(splits[:unit]) for unit in range(len(splits) + 1)]
    assert buffers.table[0, :2].tolist() == [2 * sum(runs), how == "cut"]
    contexts = np.array([length for length, count in zip(lengths, counts, strict=True) if count])
    if len(contexts) and capacity == 4096:  # the host takes it that there is room for all partials
        assert claims_cut(SHAPE, contexts, programs) == (how == "cut")
    places = set()
    for place, (unit, number) in enumerate(claims_in_order(splits, how, run)):
        last, request = lengths[unit] - 1, len(splits) - 1 - unit
        split = number * run
        fate = GOES_ON if number + 1 < runs[unit] else ENDS
        if how == "cut" and runs[unit] > 1:
            fate = IS_PARTIAL
        line = sum(runs[:unit]) + number
        places.add(line)
        keys = [min(256 * split + 64 * block, last) for block in range(4)]
        wanted = [split, min(run, splits[unit] - split), fate.value, line, unit, 1, request, last]
        wanted += [int(pages[request, key // 64]) for key in keys]
        assert buffers.table[1 + place, : len(wanted)].tolist() == wanted
    assert len(places) == sum(runs) and (how == "whole" or 2 * sum(runs) <= capacity)
    assert bool((buffers.words == 7).all()) and not buffers.state.any()


def check_a_fold_goes_on_only_after_it_was_claimed() -> None:
    """Whoever waits for the run before waits for an earlier claim, so that waiting ends."""
    for splits in ((20, 36, 1, 36, 32, 2), (7, 7, 7), (1, 40, 39, 2)):
        for run in (1, 2, 3, 8):
            order = claims_in_order(splits, "chained", run)
            assert all(
                order.index((unit, number - 1)) < order.index((unit, number))
                for unit, number in order
                if number
            )


def check_epochs_begin_anew_over_cleared_words(device: torch.device) -> None:
    buffers, table = planned((300,), (1,), 64, 3, device)
    units = Units(*(torch.full((1,), value, dtype=torch.int32, device=device) for value in (0, 1, 0)))
    positions = torch.tensor([299], device=device)
    for epoch, cleared in ((int(LAST_EPOCH) - 1, False), (int(LAST_EPOCH), True)):
        buffers.state[1] = epoch
        attention_claimed.plan(SHAPE, positions, table, units, buffers, 3)
        assert buffers.state.tolist() == [0, 0 if cleared else epoch]
        assert bool((buffers.words == 0).all()) == cleared


def on_hopper(head_dim: int, act: torch.dtype, group: int = 4) -> AttentionProblem:
    if INTERPRETED or target_name() != "sm_90":
        pytest.skip("the kernel is for Hopper, and there is no interpreter for Gluon")
    return AttentionProblem(AttentionShape(HeadLayout(2 * group, 2, head_dim), 64), act)


SHARED = ((132, 4096), (46, 4096), (36, 4096), (36, 100), (7, 4096), (3, 4096), (2, 64), (1, 4096), (132, 16))
"""(programs, partials that have room)"""


@pytest.mark.parametrize(("group", "head_dim", "tokens"), [(4, 128, 1), (5, 64, 1), (1, 128, 1), (4, 64, 2)])
def check_claims_are_proven(group: int, head_dim: int, tokens: int, device: torch.device) -> None:
    """Over every kind of border and long ragged contexts, by few programs and by many, cut, whole or chained."""
    for act in (torch.bfloat16, torch.float16):
        problem = on_hopper(head_dim, act, group)
        long = Ragged((1023, 2047, 8191, 30000, 0), (tokens,) * 5)
        cases = proof_cases(problem, tokens, device)
        even = Ragged(tuple(range(4000, 8000, 167)), (tokens,) * 24)
        cases += [make_case(problem, kind, long, 9, device) for kind in ("sharp", "cancelling")]
        level = Ragged((1023,) * 24, (tokens,) * 24)
        for ragged in (even, level):
            cases += [make_case(problem, kind, ragged, 9, device) for kind in ("sharp", "cancelling")]
        trial = Trial.of(reference_candidate(problem), cases)
        for rows in (1, 1000):
            for programs, capacity in SHARED:
                launch = claiming_launch(rows, programs)
                verdict = trial.prove(range_candidate(problem, tokens, launch, 32, device, capacity))
                assert isinstance(verdict, Proof), (act, launch, capacity, verdict.reason)


def check_words_of_other_epochs_are_not_taken(device: torch.device) -> None:
    """Numbers that look like partials, of epochs around the one to come, and at last of that one, which are taken; and
    the epoch counts launches."""
    problem = on_hopper(128, torch.bfloat16)
    case = make_case(problem, "sharp", Ragged((8191, 700), (1, 1)), 3, device)
    inputs = case.inputs
    context, units = Context(inputs[1], inputs[2], inputs[3], inputs[4]), units_of(inputs, 0)
    assert units.units == inputs[UNIT_INPUTS].shape[0] == 2
    expected = torch.empty_like(inputs[0])
    attention.reference(problem.shape, inputs[0], context, inputs[5], problem.scale, expected)
    launch = claiming_launch(1, 132)
    buffers = attention.range_buffers(problem.shape, 2, 1, 132, 4096, device, 4096)
    assert buffers.claims is not None
    attention.plan_ranges(problem.shape, context.positions, context.page_table, units, buffers, launch)
    for number in range(6):
        epoch = number + torch.arange(buffers.claims.words.numel(), device=device) % 2 * 2
        if number == 5:
            epoch.fill_(number + 1)
        buffers.claims.words.copy_((epoch << 32) | 0x3F800000)
        output = torch.full_like(inputs[0], float("nan"))
        attention.shared(problem.shape, inputs[0], context, units, problem.scale, output, buffers, launch)
        assert torch.equal(output.view(torch.int16), expected.view(torch.int16)) == (number < 5), number
        assert buffers.claims.state.tolist() == [0, number + 1]
