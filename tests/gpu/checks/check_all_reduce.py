"""Sums over ranks: the clause by an independent evaluation, both kernels, the fused norm, and planted wrong orders.

All ranks' buffers lie in this process, and the kernels run for one rank after another without meeting.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samebits.numerics.adversarial import wide_rows
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu import all_reduce
from samebits.numerics.gpu.configuration import Launch, start
from samebits.numerics.gpu.norm import add_rms_norm

LAUNCH = Launch(warps=4, stages=1)
BLOCK = 256
EPS = 1e-6


def parts_of(size: int, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """What each rank adds: values of many magnitudes, so that orders differ."""
    return [wide_rows(50 + rank, rows, width, 4).to(device, dtype) for rank in range(size)]


def joined(parts: list[Tensor], tree: bool, act: torch.dtype) -> Tensor:
    wide = [part.float() for part in parts]
    if tree:
        while len(wide) > 1:
            wide = [left + right for left, right in zip(wide[::2], wide[1::2], strict=True)]
        return wide[0].to(act)
    total = wide[0]
    for part in wide[1:]:
        total = total + part
    return total.to(act)


def table(tensors: list[Tensor]) -> Tensor:
    return torch.tensor(
        [tensor.data_ptr() for tensor in tensors], dtype=torch.int64, device=tensors[0].device
    )


def same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def one_shot(parts: list[Tensor], tree: bool, act: torch.dtype) -> list[Tensor]:
    spare = torch.zeros(8, dtype=torch.int64, device=parts[0].device)
    results = []
    for rank, part in enumerate(parts):
        y = torch.full(part.shape, float("nan"), dtype=act, device=part.device)
        start(
            all_reduce.one_shot, (3,), table(parts), spare, spare, part, y, part.numel() // 8, rank,
            launch=LAUNCH, FIRST=rank, WORLD=len(parts), TREE=tree, BLOCK=BLOCK, MEET=0,
        )  # fmt: skip
        results.append(y)
    return results


def two_shot(parts: list[Tensor], tree: bool, act: torch.dtype) -> list[Tensor]:
    device, elements, size = parts[0].device, parts[0].numel(), len(parts)
    spare = torch.zeros(8, dtype=torch.int64, device=device)
    share = -(-elements // size // 8) * 8 + 8
    results = [torch.full(parts[0].shape, float("nan"), dtype=act, device=device) for _ in parts]
    for rank, part in enumerate(parts):
        start(
            all_reduce.two_shot, (2,), table(parts), table(results), spare, spare, part, results[rank],
            elements // 8, share // 8, rank,
            launch=LAUNCH, FIRST=rank, WORLD=size, TREE=tree, WAY=all_reduce.READ.value, BLOCK=BLOCK, MEET=0,
        )  # fmt: skip
    return results


def pushed_shot(parts: list[Tensor], tree: bool, act: torch.dtype) -> list[Tensor]:
    """Every rank finds the shares that are its to add in its own room, in the order of those who wrote them."""
    device, elements, size = parts[0].device, parts[0].numel(), len(parts)
    spare = torch.zeros(8, dtype=torch.int64, device=device)
    share = -(-elements // size // 8) * 8
    results = [torch.full(parts[0].shape, float("nan"), dtype=act, device=device) for _ in parts]
    padded = [torch.nn.functional.pad(part.flatten(), (0, share * size - elements)) for part in parts]
    for rank, result in enumerate(results):
        own = torch.cat([part[rank * share : (rank + 1) * share] for part in padded])
        start(
            all_reduce.two_shot, (2,), table([own] * size), table(results), spare, spare, parts[rank], result,
            elements // 8, share // 8, rank,
            launch=LAUNCH, FIRST=rank, WORLD=size, TREE=tree, WAY=all_reduce.PUSHED.value, BLOCK=BLOCK, MEET=0,
        )  # fmt: skip
    return results


def push_shot(parts: list[Tensor], tree: bool, act: torch.dtype) -> list[Tensor]:
    """Without meeting, ranks do not wait for each other: all write, and whoever comes last has been written to by all;
    so each is run again behind the others."""
    device, elements, size = parts[0].device, parts[0].numel(), len(parts)
    spare = torch.zeros(8, dtype=torch.int64, device=device)
    share = -(-elements // size // 8) * 8
    rooms = [torch.full((size * share,), float("nan"), dtype=parts[0].dtype, device=device) for _ in parts]
    results = [torch.full(parts[0].shape, float("nan"), dtype=act, device=device) for _ in parts]
    for rank, part in [*enumerate(parts), *enumerate(parts)]:
        start(
            all_reduce.two_shot, (2,), table(rooms), table(results), spare, spare, part, results[rank],
            elements // 8, share // 8, rank,
            launch=LAUNCH, FIRST=rank, WORLD=size, TREE=tree, WAY=all_reduce.PUSH.value, BLOCK=BLOCK, MEET=0,
        )  # fmt: skip
    return results


CASES = [(size, tree) for size in (2, 4, 8) for tree in (False, True)]


@pytest.mark.parametrize(("size", "tree"), CASES)
def check_both_kernels_are_the_clause(
    size: int, tree: bool, device: torch.device, dtypes: list[torch.dtype]
) -> None:
    for act in dtypes:
        part = torch.float32 if tree else act
        parts = parts_of(size, 3, 400, part, device)
        expected = joined(parts, tree, act)
        for kernel in (one_shot, two_shot, pushed_shot, push_shot):
            for result in kernel(parts, tree, act):
                assert same(result, expected), (kernel.__name__, act)


def check_an_element_does_not_know_its_message(device: torch.device) -> None:
    parts = parts_of(4, 5, 400, torch.float32, device)
    whole = one_shot(parts, False, torch.float32)[0]
    for row in range(5):
        alone = one_shot([part[row].clone() for part in parts], False, torch.float32)[0]
        assert same(alone, whole[row])


def check_orders_differ(device: torch.device) -> None:
    """The inverse: other orders give other bits on these inputs."""
    parts = parts_of(4, 3, 400, torch.float32, device)
    ascending, tree = joined(parts, False, torch.float32), joined(parts, True, torch.float32)
    descending = joined(parts[::-1], False, torch.float32)
    assert not same(ascending, tree) and not same(ascending, descending)
    halves = [part.half() for part in parts_of(4, 3, 400, torch.float16, device)]
    rounded_each_time = halves[0]
    for half in halves[1:]:
        rounded_each_time = rounded_each_time + half
    assert not same(rounded_each_time, joined(halves, False, torch.float16))


def check_reduce_scatter_and_all_gather(device: torch.device) -> None:
    parts = parts_of(4, 1, 1000, torch.float32, device)
    expected = joined(parts, False, torch.float32).flatten()
    spare = torch.zeros(8, dtype=torch.int64, device=device)
    for rank, part in enumerate(parts):
        y = torch.zeros(256, device=device)
        start(
            all_reduce.reduce_scatter, (2,), table(parts), spare, spare, part, y, 125, 32, rank,
            launch=LAUNCH, FIRST=rank, WORLD=4, TREE=False, BLOCK=BLOCK, MEET=0,
        )  # fmt: skip
        own = expected[rank * 256 : (rank + 1) * 256]
        assert same(y[: own.numel()], own)
        gathered = torch.zeros(4, 1000, device=device)
        start(
            all_reduce.all_gather, (2,), table(parts), spare, spare, gathered, 125, rank,
            launch=LAUNCH, WORLD=4, BLOCK=BLOCK, MEET=0,
        )  # fmt: skip
        assert same(gathered, torch.cat(parts))


@pytest.mark.parametrize("tree", [False, True])
def check_the_fused_norm_is_the_pair(tree: bool, device: torch.device, dtypes: list[torch.dtype]) -> None:
    width = 400
    for act in dtypes:
        parts = parts_of(2, 3, width, torch.float32 if tree else act, device)
        residual = wide_rows(7, 3, width, 2).to(device, act)
        weight = wide_rows(8, 1, width, 1)[0].to(device, act)
        summed = joined(parts, tree, act)
        expected = add_rms_norm(summed, residual, weight, EPS)
        spare = torch.zeros(8, dtype=torch.int64, device=device)
        y, total = torch.empty_like(residual), torch.empty_like(residual)
        start(
            all_reduce.one_shot_add_norm, (2,),
            table(parts), spare, spare, parts[0], residual, weight, y, total, 3, 0, EPS,
            launch=LAUNCH, WIDTH=width, LANES=CONTRACT.device_reduction_lanes, FIRST=1, WORLD=2, TREE=tree, MEET=0,
        )  # fmt: skip
        assert same(y, expected[0]) and same(total, expected[1])
