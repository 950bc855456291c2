"""Sums over GPUs: which bits depend on what, and how long they take, against NCCL and PyTorch's own, in one run.

Starts a process for each GPU. Times are of CUDA graphs of many calls, medians over replays, the slowest rank's.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from samebits.bench.facts import machine
from samebits.numerics.adversarial import wide_rows
from samebits.numerics.gpu.norm import add_rms_norm
from samebits.numerics.gpu.rank_proof import folded
from samebits.numerics.gpu.ranks import RankCollectives

WIDTH = 4096
MOST_ROWS = 8192
CHECKED_ROWS = 1024
ROWS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192)
BATCHES = (1, 4, 16, 64, 256, 1024)
SHIFT = 7
REPEATS = 50
CALLS = 20
"""calls in a captured graph: an even number, for buffers take turns"""
REPLAYS = 15
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
OURS = ("one-shot", "two-shot", "push")
EPS = 1e-6


@dataclass(frozen=True)
class Rank:
    """One process's place."""

    index: int
    size: int
    device: torch.device

    def slowest(self, seconds: float) -> float:
        """The largest of all ranks' figures."""
        worst = torch.tensor([seconds], dtype=torch.float64, device=self.device)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        return float(worst)


def run(ranks: int) -> dict[str, Any]:
    """The whole benchmark on the first `ranks` GPUs of this machine."""
    found = _on_ranks(ranks, _everything)
    return {"machine": machine(), "gpus": ranks, "gpu": torch.cuda.get_device_name(0), **found}


def microseconds_alone(ranks: int, rows: Sequence[int], width: int) -> dict[int, dict[str, float]]:
    """By rows: what one sum of [rows, width] takes in a graph of nothing else, ours in both orders and NCCL's."""
    found: dict[int, dict[str, float]] = _on_ranks(ranks, partial(_alone, list(rows), width))
    return found


def _on_ranks(ranks: int, work: Callable[[Rank], Any]) -> Any:
    """What `work` returns on rank 0, done by a process for each GPU."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.pt"
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_rank, args=(index, ranks, folder, str(result), work))
            for index in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"ranks ended with {[process.exitcode for process in processes]}")
        return torch.load(result, weights_only=True)


def _rank(index: int, size: int, folder: str, result: str, work: Callable[[Rank], Any]) -> None:
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("nccl", store=store, rank=index, world_size=size, device_id=device)
    found = work(Rank(index, size, device))
    if index == 0:
        torch.save(found, result)
    dist.barrier()
    dist.destroy_process_group()


def _everything(rank: Rank) -> dict[str, Any]:
    return {
        "determinism": [row for name in DTYPES for row in determinism(rank, name)],
        "clauses": clauses(rank),
        "microseconds": latency(rank),
    }


def _alone(rows: Sequence[int], width: int, rank: Rank) -> dict[int, dict[str, float]]:
    act = torch.bfloat16
    found = {}
    exact = RankCollectives(max(rows) * width * act.itemsize, rank.device)
    tree = RankCollectives(max(rows) * width * 4, rank.device, tree=True)
    for count in rows:
        x = _part(rank, count, act, width)
        work: dict[str, Callable[[], object]] = {
            "exact": partial(_sum, exact, x),
            "tp-invariant": partial(_tree_sum, tree, x, act),
            "nccl": partial(dist.all_reduce, x),
        }
        found[count] = {name: round(_median_microseconds(rank, call), 2) for name, call in work.items()}
    return found


def _tree_sum(tree: RankCollectives, like: Tensor, act: torch.dtype) -> Tensor:
    """As `tp-invariant` adds: what products have written to the ranks that add it is there already."""
    part = tree.input(like.shape, torch.float32)
    return tree.all_reduce(part, act, pushed=tree.pushes(part.shape[0], part.numel() * part.element_size()))


def _part(rank: Rank, rows: int, dtype: torch.dtype, width: int = WIDTH) -> Tensor:
    """What this rank adds: values of many magnitudes."""
    return wide_rows(900 + rank.index, rows, width, 4).to(rank.device, dtype)


def _folded(rank: Rank, part: Tensor, act: torch.dtype, tree: bool = False) -> Tensor:
    """The clause by torch, out of gathered copies."""
    parts = [torch.empty_like(part) for _ in range(rank.size)]
    dist.all_gather(parts, part)
    return folded(parts, tree, act)


def _differing(left: Tensor, right: Tensor) -> float:
    """Share of elements with other bits."""
    view = torch.int16 if left.element_size() == 2 else torch.int32
    return float((left.view(view) != right.view(view)).double().mean())


def _methods(rank: Rank, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    ours = RankCollectives(CHECKED_ROWS * WIDTH * dtype.itemsize, rank.device)

    def of(method: str) -> Callable[[Tensor], Tensor]:
        def reduce(x: Tensor) -> Tensor:
            return ours.all_reduce(_given(ours, x), dtype, method).clone()

        return reduce

    def nccl(x: Tensor) -> Tensor:
        y = x.clone()
        dist.all_reduce(y)
        return y

    return {**{f"samebits {method}": of(method) for method in OURS}, "nccl": nccl}


def _given(ours: RankCollectives, values: Tensor) -> Tensor:
    """The values in the place where the next collective reads them."""
    return ours.input(values.shape, values.dtype).copy_(values)


def determinism(rank: Rank, name: str) -> list[dict[str, Any]]:
    """Shares of differing elements: rows in smaller messages, rows elsewhere in the message, repeats, the clause."""
    dtype = DTYPES[name]
    full = _part(rank, CHECKED_ROWS + SHIFT, dtype)
    clause = _folded(rank, full, dtype)
    table = []
    for method, reduce in _methods(rank, dtype).items():
        base = reduce(full[:CHECKED_ROWS])
        smaller = max(_differing(reduce(full[:rows]), base[:rows]) for rows in BATCHES)
        shifted = _differing(reduce(full[SHIFT:])[: CHECKED_ROWS - SHIFT], base[SHIFT:])
        again = [reduce(full[:64]) for _ in range(REPEATS)]
        table.append(
            {
                "dtype": name,
                "method": method,
                "smaller_messages": smaller,
                "shifted_rows": shifted,
                "repeats_that_differ": sum(_differing(one, again[0]) > 0 for one in again),
                "from_the_clause": _differing(base, clause[:CHECKED_ROWS]),
            }
        )
    return table


def clauses(rank: Rank) -> dict[str, float]:
    """Shares of elements that leave the clause, in the tree, reduce-scatter, all-gather, fused norm and a graph."""
    rows, act = 64, torch.bfloat16
    found: dict[str, float] = {}
    tree = RankCollectives(rows * WIDTH * 4, rank.device, tree=True)
    wide = _part(rank, rows, torch.float32)
    for method in OURS:
        found[f"tree, {method}"] = _differing(
            tree.all_reduce(_given(tree, wide), act, method), _folded(rank, wide, act, True)
        )
    found["tree against ascending (must differ with 4 ranks or more)"] = _differing(
        _folded(rank, wide, torch.float32, True), _folded(rank, wide, torch.float32)
    )
    plain = RankCollectives(rows * WIDTH * act.itemsize, rank.device)
    part = _part(rank, rows, act)
    clause = _folded(rank, part, act)
    share = part.numel() // rank.size
    own = clause.flatten()[rank.index * share : (rank.index + 1) * share]
    found["reduce-scatter"] = _differing(plain.reduce_scatter(_given(plain, part), act), own)
    gathered = torch.empty((rank.size, part.numel()), dtype=act, device=rank.device)
    plain.all_gather(_given(plain, part), gathered)
    found["all-gather"] = _differing(gathered[rank.index], part.flatten())
    residual = wide_rows(5, rows, WIDTH, 2).to(rank.device, act)
    weight = wide_rows(6, 1, WIDTH, 1)[0].to(rank.device, act)
    expected = add_rms_norm(clause, residual, weight, EPS)
    out = torch.empty_like(residual), torch.empty_like(residual)
    plain.add_rms_norm(_given(plain, part), residual, weight, EPS, out)
    found["fused add and norm"] = max(_differing(out[0], expected[0]), _differing(out[1], expected[1]))
    found["replayed graph, new inputs"] = _replayed(rank, plain, rows)
    return found


def _replayed(rank: Rank, ours: RankCollectives, rows: int) -> float:
    """A captured pair of sums, replayed with other inputs each time (trap 10)."""
    part = _part(rank, rows, torch.bfloat16)
    sums = [torch.empty_like(part) for _ in range(2)]

    def pair() -> None:
        for factor, y in enumerate(sums, start=1):
            product = torch.mul(part, factor, out=ours.input(part.shape, part.dtype))
            y.copy_(ours.all_reduce(product, part.dtype, "two-shot" if factor == 2 else "one-shot"))

    graph = _captured(pair)
    worst = 0.0
    for turn in range(8):
        part.copy_(_part(rank, rows + turn, torch.bfloat16)[turn:])
        graph.replay()
        for factor, y in enumerate(sums, start=1):
            worst = max(worst, _differing(y, _folded(rank, part * factor, torch.bfloat16)))
    return worst


def _captured(work: Callable[[], object], calls: int = 1) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    return graph


def _median_microseconds(rank: Rank, work: Callable[[], object]) -> float:
    graph = _captured(work, CALLS)
    begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
    times = []
    for _ in range(REPLAYS):
        dist.barrier()
        torch.cuda.synchronize()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / CALLS * 1e3)
    return rank.slowest(statistics.median(times))


def latency(rank: Rank) -> list[dict[str, Any]]:
    """Microseconds of a bf16 sum of [rows, 4096], with the inputs in place."""
    dtype = torch.bfloat16
    ours = RankCollectives(MOST_ROWS * WIDTH * dtype.itemsize, rank.device)
    name = dist.group.WORLD.group_name if dist.group.WORLD is not None else ""
    theirs = ours.input((MOST_ROWS * WIDTH,), dtype)
    weight = wide_rows(6, 1, WIDTH, 1)[0].to(rank.device, dtype)
    torch_ops = torch.ops.symm_mem
    table = []
    for rows in ROWS:
        shape = (rows, WIDTH)
        x = _part(rank, rows, dtype)
        in_place = theirs[: x.numel()].view(shape)
        residual, out = torch.zeros_like(x), (torch.empty_like(x), torch.empty_like(x))
        work: dict[str, Callable[[], object]] = {
            "nccl": partial(dist.all_reduce, x),
            "nccl reduce-scatter, all-gather": partial(_scatter_and_gather, x.flatten(), rank.size),
            "torch one_shot": partial(torch_ops.one_shot_all_reduce, in_place, "sum", name),
            "torch two_shot": partial(torch_ops.two_shot_all_reduce_, in_place, "sum", name),
            **{f"samebits {method}": partial(_sum, ours, x, method) for method in OURS},
            "samebits": partial(_sum, ours, x),
            "samebits, norm fused": partial(_sum_with_norm, ours, residual, weight, out),
            "samebits, then norm": partial(_sum_then_norm, ours, residual, weight, out),
        }
        row: dict[str, Any] = {"rows": rows, "kib": rows * WIDTH * dtype.itemsize / 1024}
        for method, call in work.items():
            row[method] = round(_median_microseconds(rank, call), 2)
        row["nccl / samebits"] = round(row["nccl"] / row["samebits"], 3)
        table.append(row)
    return table


def _scatter_and_gather(values: Tensor, ranks: int) -> None:
    """A sum in NCCL's two halves, in place."""
    share = torch.empty(values.numel() // ranks, dtype=values.dtype, device=values.device)
    dist.reduce_scatter_tensor(share, values)
    dist.all_gather_into_tensor(values, share)


def _sum(ours: RankCollectives, like: Tensor, method: str = "") -> Tensor:
    """The sum of what lies in the inputs, of the shape and type of `like`."""
    return ours.all_reduce(ours.input(like.shape, like.dtype), like.dtype, method)


def _sum_with_norm(
    ours: RankCollectives, residual: Tensor, weight: Tensor, out: tuple[Tensor, Tensor]
) -> object:
    return ours.add_rms_norm(ours.input(residual.shape, residual.dtype), residual, weight, EPS, out)


def _sum_then_norm(
    ours: RankCollectives, residual: Tensor, weight: Tensor, out: tuple[Tensor, Tensor]
) -> object:
    return add_rms_norm(_sum(ours, residual), residual, weight, EPS, out)


def lines(found: dict[str, Any]) -> list[str]:
    """What a person reads."""
    from samebits.tables import align

    rows = [("dtype", "method", "smaller messages", "shifted rows", "repeats", "from the clause")]
    for row in found["determinism"]:
        rows.append(
            (
                row["dtype"],
                row["method"],
                f"{row['smaller_messages']:.2%}",
                f"{row['shifted_rows']:.2%}",
                str(row["repeats_that_differ"]),
                f"{row['from_the_clause']:.2%}",
            )
        )
    told = ["differing elements", *align(rows), "", "against the clause"]
    told += [f"  {name}: {share:.2%}" for name, share in found["clauses"].items()]
    names = [name for name in found["microseconds"][0] if name != "kib"]
    table = [tuple(names)] + [tuple(str(row[name]) for name in names) for row in found["microseconds"]]
    return [*told, "", f"microseconds, bf16 [rows, {WIDTH}]", *align(table)]
