"""Which collective serves, what the log says of it, and what is refused; and plans that differ between ranks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

import torch
from rank_threads import on_ranks

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.shard import Ranks, check_fingerprints, check_parallel, make_numerics
from samebits.errors import ConfigError, NumericsError
from samebits.numerics.gpu import rank_group, ranks
from samebits.numerics.gpu.rank_group import ALL_METHODS, GatheringGroup, check_method, check_ranks
from samebits.numerics.gpu.ranks import served


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_log_says_what_serves_which_size(size: int) -> None:
    chosen = served(size, False, "auto")
    assert chosen.startswith(f"{size} ranks, ascending ranks, float32: one-shot ")
    assert ("one-shot for every size" in chosen) == (size == 2)
    assert ("two-shot above, push from" in chosen) == (size > 2)
    tree = served(size, True, "auto")
    assert "balanced tree" in tree and "products write to the ranks that add" in tree
    for method in ("one-shot", "two-shot", "push"):
        assert served(size, False, method).endswith(f"{method} for every size, as asked for")


def test_ranks_without_each_others_memory_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    own, theirs = (
        GatheringGroup(torch.device("cpu"), False, own_sums, host=None).describe()  # type: ignore[arg-type]
        for own_sums in (True, False)
    )
    assert (
        own == "4 ranks, ascending ranks, float32: all parts gathered through NCCL and added, for every size"
    )
    assert theirs == "4 ranks: NCCL's sums, which promise nothing"


def test_nccl_waits_for_no_rank_that_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that destroys NCCL's group when the other ranks are gone waits for them."""
    aborted: list[bool] = []
    held = SimpleNamespace(WORLD=None)
    distributed = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: 2, group=held)
    monkeypatch.setattr(rank_group, "dist", distributed)
    group = GatheringGroup(torch.device("cpu"), False, True, host=None)  # type: ignore[arg-type]
    group.abandon()  # torch.distributed holds no group
    assert not aborted
    held.WORLD = SimpleNamespace(abort=lambda: aborted.append(True))
    group.abandon()
    assert aborted


def test_one_rank_of_a_cpu_logs_the_collective(caplog: pytest.LogCaptureFixture) -> None:
    def work(group) -> None:
        model = ModelConfig(model="tiny", load_format="dummy", device="cpu", tensor_parallel=2)
        make_numerics(model, EngineConfig(threads=1), Ranks(group))

    with caplog.at_level(logging.INFO):
        on_ranks(2, work)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("[AR]")]
    assert lines == ["[AR] 2 ranks on the CPU: all parts are gathered and added, for every size"]


@pytest.mark.parametrize("profile", ["exact", "tp-invariant", "unpinned"])
def test_sums_of_nccl_are_for_the_profile_that_promises_nothing(profile: str) -> None:
    for method in ALL_METHODS:
        if method == "nccl" and profile != "unpinned":
            with pytest.raises(NumericsError, match=f"--numerics {profile} forbids"):
                check_method(method, profile)
        else:
            check_method(method, profile)
    with pytest.raises(NumericsError, match="must be one of auto, one-shot, two-shot, push, gather, nccl"):
        check_method("ring", profile)


def test_ranks_share_gpus_where_that_is_asked_for_and_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check_ranks(4, "exact", "auto")
    check_ranks(8, "tp-invariant", "auto", ranks_per_gpu=2)
    with pytest.raises(NumericsError, match="takes a GPU for each rank, and torch finds 4 here"):
        check_ranks(8, "tp-invariant", "auto")
    with pytest.raises(NumericsError, match="takes a GPU for every 2 ranks, and torch finds 4 here"):
        check_ranks(16, "tp-invariant", "auto", ranks_per_gpu=2)
    for size, shared in ((1, 2), (8, 3), (8, 0)):
        with pytest.raises(NumericsError, match=f"must divide --tensor-parallel {size}, got {shared}"):
            check_ranks(size, "tp-invariant", "auto", shared)
    for profile, method in (("exact", "gather"), ("unpinned", "auto"), ("unpinned", "nccl")):
        with pytest.raises(NumericsError, match=r"NCCL, .* takes one rank a GPU"):
            check_ranks(8, profile, method, ranks_per_gpu=2)


def test_ranks_that_share_a_gpu_are_told_how_much_of_it_is_theirs() -> None:
    model = ModelConfig(device="cuda", tensor_parallel=8)
    with pytest.raises(ConfigError, match="--ranks-per-gpu takes --kv-memory-mib"):
        check_parallel(model, EngineConfig(ranks_per_gpu=2))
    with pytest.raises(ConfigError, match="not for the replicas of --data-parallel"):
        check_parallel(model, EngineConfig(ranks_per_gpu=2, kv_memory_mib=64, data_parallel=2))


def test_gpus_that_do_not_reach_each_other_are_told_what_does_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def empty(*size: int, **how: object) -> torch.Tensor:
        raise RuntimeError("no peer access")

    monkeypatch.setattr(ranks.symmetric_memory, "empty", empty)
    with pytest.raises(
        NumericsError, match=r"cannot read each other's memory, .*--all-reduce gather does without"
    ):
        ranks.peer_buffer(1024, torch.device("cpu"), "group")


@dataclass(frozen=True)
class FakePlan:
    fingerprint: str


def test_ranks_with_other_plans_are_refused_by_name() -> None:
    def work(prints: list[str]) -> list[None]:
        return on_ranks(4, lambda group: check_fingerprints(group, FakePlan(prints[group.rank])))  # type: ignore[arg-type]

    work(["sb1-a"] * 4)
    with pytest.raises(
        NumericsError, match=r"different plans \(rank 0: sb1-a, rank 2: sb1-b\); do all see the same"
    ):
        work(["sb1-a", "sb1-a", "sb1-b", "sb1-a"])
