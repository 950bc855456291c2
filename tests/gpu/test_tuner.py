"""Tuning and binding without a GPU: candidates are functions on CPU tensors, the stopwatch says what it is told."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from rank_threads import ThreadGroup, on_ranks

from samebits.errors import NumericsError
from samebits.numerics.gpu import bindings, launch, tuner
from samebits.numerics.gpu.bindings import Sharing, bind_all
from samebits.numerics.gpu.gemm_trials import RowTrials, windows
from samebits.numerics.gpu.launch import KernelSource
from samebits.numerics.gpu.operator import Recipe, Round, Wish, Workload
from samebits.numerics.gpu.proofs import ProofStore
from samebits.numerics.gpu.prover import Candidate, Case, Output, Proof, Rejection, Tensors, Trial
from samebits.numerics.gpu.tuner import bind

KEY = {"device": "a card"}


@dataclass(frozen=True)
class Doubling:
    """A shape of the operator under test."""

    width: int = 4

    @property
    def key(self) -> str:
        return f"{self.width} wide"


def right(inputs: Tensors, outputs: Tensors) -> None:
    outputs[0].copy_(inputs[0] * 2)


def wrong(inputs: Tensors, outputs: Tensors) -> None:
    outputs[0].copy_(inputs[0] * 2 + 1e-6)


@dataclass
class FakeOperator:
    """Candidates by name, with the seconds that each is said to take."""

    candidates: dict[str, Candidate]
    made: list[str] = field(default_factory=list)
    clause: str = "doubling"

    def sources(self, problem: Doubling, buckets: Sequence[int]) -> Iterable[KernelSource]:
        return ()

    def _recipe(self, candidate: Candidate) -> Recipe:
        def make() -> Candidate:
            self.made.append(candidate.name)
            if candidate.identity == "broken":
                raise RuntimeError("does not compile")
            return candidate

        return Recipe(candidate.name, make, fallback=candidate.name == "slow")

    def recipes(self, problem: Doubling, bucket: int) -> Iterable[Recipe]:
        return [self._recipe(candidate) for candidate in self.candidates.values()]

    def restore(self, problem: Doubling, bucket: int, name: str, identity: str) -> Recipe | None:
        return self._recipe(self.candidates[name]) if name in self.candidates else None

    def rounds(self, problem: Doubling, buckets: Sequence[int]) -> Iterator[Round]:
        for bucket in buckets:
            values = torch.arange(1.0, bucket * problem.width + 1).view(bucket, problem.width)
            case = Case("values", (values,), (Output((bucket, problem.width), torch.float32),))
            trial = Trial.of(Candidate("reference", "r", right), [case])
            yield Round(bucket, trial, lambda: Workload((), bytes=10, operations=20))


SECONDS = {"slow": 3.0, "fast": 1.0, "faster but wrong": 0.5, "middle": 2.0}


def stopwatch(candidates: Sequence[Candidate], workload: Workload, replays: int) -> list[float]:
    return [SECONDS[candidate.name] for candidate in candidates]


def operator() -> FakeOperator:
    return FakeOperator(
        {
            "slow": Candidate("slow", "s", right),
            "faster but wrong": Candidate("faster but wrong", "w", wrong),
            "fast": Candidate("fast", "f", right),
            "broken": Candidate("broken", "broken", right),
            "middle": Candidate("middle", "m", right),
        }
    )


def test_the_fastest_proven_candidate_is_bound_and_all_are_on_record() -> None:
    found = operator()
    bound = bind(found, Doubling(), next(found.rounds(Doubling(), [2])), stopwatch)
    assert bound.candidate.name == "fast"
    reasons = {entry.name: entry.rejection for entry in bound.tried if entry.seconds is None}
    assert reasons.keys() == {"faster but wrong", "broken"}
    assert reasons["faster but wrong"].startswith("case values, output 0 [0, 0]:")
    assert reasons["broken"] == "RuntimeError: does not compile"
    assert bound.record().seconds == 1.0


def test_a_fallback_is_tried_only_where_nothing_else_is_proven() -> None:
    found = operator()
    found.candidates["slow"] = found.candidates.pop("slow")  # fallbacks come last
    bound = bind(found, Doubling(), next(found.rounds(Doubling(), [2])), stopwatch)
    assert "slow" not in {entry.name for entry in bound.tried}
    found.candidates = {name: found.candidates[name] for name in ("faster but wrong", "slow")}
    bound = bind(found, Doubling(), next(found.rounds(Doubling(), [2])), stopwatch)
    assert bound.candidate.name == "slow"


def test_times_below_zero_still_bind_the_fastest() -> None:
    """On a card that is busy with other work, what the short kernel takes by itself may be overestimated."""
    found = operator()

    def busy(candidates: Sequence[Candidate], workload: Workload, replays: int) -> list[float]:
        return [SECONDS[candidate.name] - 2.5 for candidate in candidates]

    assert bind(found, Doubling(), next(found.rounds(Doubling(), [2])), busy).candidate.name == "fast"


def test_heavy_work_is_compared_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "interleaved_seconds", lambda *given, **more: ["short"])
    monkeypatch.setattr(tuner, "seconds_under_load", lambda *given: ["loaded"])
    monkeypatch.setattr(tuner, "seconds_when_lasting", lambda *given: ["lasting"])
    for operations, replays, lasting, expected in (
        (1e9, 15, False, "short"),
        (1e12, 15, False, "loaded"),
        (1e12, 15, True, "lasting"),
        (1e12, 5, True, "short"),
    ):
        workload = Workload((), bytes=10, operations=int(operations), lasting=lasting)
        assert tuner.tuning_seconds([], workload, replays) == [expected]


def test_a_hungry_candidate_loses_where_work_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that slows down for what the kernel before drew: in short turns the hungry one looks faster."""
    clock = 1.0

    @dataclass
    class Graph:
        cycles: float
        draws: float
        runs: int = 1

        def seconds(self, replays: int = 1) -> float:
            nonlocal clock
            spent = 0.0
            for _ in range(replays):
                spent += self.cycles / clock
                clock += (self.cycles / clock / 0.02) * (1.0 / self.draws - clock)
            return spent / replays

    graphs = [
        Graph(1.0e-3, 1.3),
        Graph(1.1e-3, 1.1),
        Graph(1.4e-3, 1.0),
        Graph(1.5e-3, 1.0),
        Graph(1.6e-3, 1.0),
    ]
    monkeypatch.setattr(tuner, "graphs_of", lambda *given: graphs)
    workload = Workload((), bytes=10, operations=int(1e12), lasting=True)
    short = tuner.seconds_under_load([], workload)
    lasting = tuner.seconds_when_lasting([], workload)
    assert min(range(5), key=short.__getitem__) == 0
    assert min(range(5), key=lasting.__getitem__) == 1
    assert sorted(range(5), key=lasting.__getitem__)[:3] == [1, 0, 2]


def test_of_lasting_work_no_candidate_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one run on a card in any state takes says nothing."""
    found = operator()

    def sprint(candidates: Sequence[Candidate], workload: Workload, replays: int) -> list[float]:
        first = replays < tuner.FINAL_REPLAYS
        return [SECONDS[one.name] if first else 4.0 - SECONDS[one.name] for one in candidates]

    item = next(found.rounds(Doubling(), [2]))
    lasting = replace(item, workload=lambda: Workload((), bytes=10, operations=20, lasting=True))
    assert bind(found, Doubling(), item, sprint).candidate.name == "fast"
    assert bind(found, Doubling(), lasting, sprint).candidate.name == "slow"


def test_where_nothing_is_proven_the_shape_is_named() -> None:
    found = operator()
    found.candidates = {"faster but wrong": found.candidates["faster but wrong"]}
    with pytest.raises(
        NumericsError, match=r"doubling clause is proven for 4 wide at 2 rows .* output 0 \[0, 0\]"
    ):
        bind(found, Doubling(), next(found.rounds(Doubling(), [2])), stopwatch)


def bound_names(found: FakeOperator, folder: Path, stages: list[str] | None = None) -> dict[int, str]:
    def progress(stage: str, done: int, total: int) -> None:
        if stages is not None:
            stages.append(stage)

    store = ProofStore(folder, KEY)
    bindings = bind_all([Wish(found, Doubling(), (1, 2))], store, progress, stopwatch)
    return {bucket: bindings.candidate("doubling", Doubling(), bucket).name for bucket in (1, 2)}


def test_a_later_start_proves_nothing_and_makes_only_what_serves(tmp_path: Path) -> None:
    assert bound_names(operator(), tmp_path) == {1: "fast", 2: "fast"}
    later, stages = operator(), list[str]()
    assert bound_names(later, tmp_path, stages) == {1: "fast", 2: "fast"}
    assert later.made == ["fast", "fast"]
    assert stages == []


def test_other_machine_code_than_was_proven_is_proven_again(tmp_path: Path) -> None:
    bound_names(operator(), tmp_path)
    changed = operator()
    changed.candidates["fast"] = Candidate("fast", "other code", wrong)
    assert bound_names(changed, tmp_path) == {1: "middle", 2: "middle"}


def test_a_candidate_that_is_gone_is_replaced(tmp_path: Path) -> None:
    bound_names(operator(), tmp_path)
    changed = operator()
    del changed.candidates["fast"]
    assert bound_names(changed, tmp_path) == {1: "middle", 2: "middle"}


def test_what_was_not_bound_is_refused(tmp_path: Path) -> None:
    bindings = bind_all(
        [Wish(operator(), Doubling(), (1,))], ProofStore(tmp_path, KEY), lambda *_: None, stopwatch
    )
    assert bindings.identities == {"f"}
    for problem, bucket in ((Doubling(), 2), (replace(Doubling(), width=8), 1)):
        with pytest.raises(NumericsError, match="nothing is proven"):
            bindings.candidate("doubling", problem, bucket)


def bound_together(operators: list[FakeOperator], folder: Path) -> list[dict[int, str]]:
    """The names that ranks bind that share the work of a start."""

    def work(group: ThreadGroup) -> dict[int, str]:
        wishes = [Wish(operators[group.rank], Doubling(), (1, 2, 3, 4, 5))]
        sharing = Sharing(group.rank, group.size, lambda: group.all_gather(torch.zeros(1)))
        bindings = bind_all(wishes, ProofStore(folder, KEY), lambda *_: None, stopwatch, sharing)
        assert len(bindings.records) == len(bindings.candidates) == 5
        return {bucket: bindings.candidate("doubling", Doubling(), bucket).name for bucket in (1, 2, 3, 4, 5)}

    return on_ranks(len(operators), work)


def test_ranks_share_the_proofs_and_bind_the_same(tmp_path: Path) -> None:
    operators = [operator() for _ in range(2)]
    assert bound_together(operators, tmp_path) == [dict.fromkeys(range(1, 6), "fast")] * 2
    # Each proved its part with every candidate, and made the winner of the rest.
    assert [found.made.count("slow") for found in operators] == [3, 2]
    assert [found.made.count("fast") for found in operators] == [5, 5]
    assert len(ProofStore(tmp_path, KEY).entries) == 5


def test_a_rank_that_cannot_restore_proves_by_itself(tmp_path: Path) -> None:
    """Nobody waits for what only one of them lacks."""
    operators = [operator() for _ in range(2)]
    operators[1].candidates["fast"] = Candidate("fast", "other code", right)
    assert bound_together(operators, tmp_path) == [dict.fromkeys(range(1, 6), "fast")] * 2
    assert [found.made.count("slow") for found in operators] == [5, 5]
    again = [operator() for _ in range(2)]
    again[1].candidates["fast"] = Candidate("fast", "other code", right)
    assert bound_together(again, tmp_path) == [dict.fromkeys(range(1, 6), "fast")] * 2


def test_what_another_process_saved_meanwhile_stays(tmp_path: Path) -> None:
    early = ProofStore(tmp_path, KEY)
    bound_names(operator(), tmp_path)
    found = operator()
    early.add(bind(found, Doubling(8), next(found.rounds(Doubling(8), [2])), stopwatch).record())
    early.save()
    places = {record.place for record in ProofStore(tmp_path, KEY).entries}
    assert places == {("doubling", "4 wide", 1), ("doubling", "4 wide", 2), ("doubling", "8 wide", 2)}


def test_threads_compile_a_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first; an error reaches both, and is not kept."""
    asked, go = list[str](), threading.Event()

    def loaded(source: str) -> str:
        asked.append(source)
        assert go.wait(10)
        if len(asked) == 1:
            raise ValueError("no compiler")
        return source.upper()

    monkeypatch.setattr(launch, "_loaded", loaded)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(launch._loaded_once, "a kernel") for _ in range(2)]  # type: ignore[arg-type]
        go.set()
        errors = [future.exception() for future in both]
    assert "no compiler" in {str(error) for error in errors}
    assert launch._loaded_once("a kernel") == "A KERNEL"  # type: ignore[arg-type, comparison-overlap]
    assert not launch._under_way


def test_what_fails_behind_is_met_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker goes on behind a kernel that does not compile, whatever it raises."""
    seen, ended = list[str](), threading.Event()

    def load(source: str) -> None:
        seen.append(source)
        if source == "last":
            ended.set()
        raise KeyboardInterrupt if source == "first" else ValueError("no compiler")

    monkeypatch.setattr(bindings, "load", load)
    monkeypatch.setattr(bindings, "compilers", lambda: 1)
    bindings.compile_behind(["first", "second", "first", "last"])  # type: ignore[list-item]
    assert ended.wait(30)
    assert seen == ["first", "second", "last"]
    stages = list[int]()
    bindings.compile_all(["third"], lambda stage, done, total: stages.append(done))  # type: ignore[list-item]
    assert seen[-1] == "third" and stages == [0, 1]


def test_what_takes_long_compiles_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets past the barrier before three are there."""
    together, names = threading.Barrier(3, timeout=60), list[str]()

    def load(source: str) -> None:
        names.append(threading.current_thread().name)
        together.wait()

    monkeypatch.setattr(bindings, "load", load)
    monkeypatch.setattr(bindings, "compilers", lambda: 3)
    bindings.compile_behind(["first", "second", "third"])  # type: ignore[list-item]
    for thread in threading.enumerate():
        if thread.name.startswith("samebits-compiler"):
            thread.join(60)
    assert len(set(names)) == 3 and not together.broken


ENDING = """
import threading, time
from samebits.numerics.gpu import bindings

def load(source):
    if source == "first":
        begun.set()
        threading.main_thread().join()
    else:
        time.sleep(3600)

begun = threading.Event()
bindings.load, bindings.compilers = load, lambda: 1
bindings.compile_behind(["first", "second"])
begun.wait()
raise {how}
"""


@pytest.mark.parametrize(
    ("how", "code"), [("SystemExit(7)", 7), ("KeyboardInterrupt", None), ("ValueError", 1)]
)
def test_a_process_that_ends_waits_for_kernels_under_way_alone(how: str, code: int | None) -> None:
    """A start that fails, or is interrupted, while kernels compile behind it."""
    found = subprocess.run([sys.executable, "-c", ENDING.format(how=how)], capture_output=True, timeout=120)
    assert found.returncode == code if code is not None else found.returncode != 0
    assert b"Exception in thread" not in found.stderr


def test_few_rows_are_tried_in_several_places() -> None:
    assert list(windows(1, 8192)) == list(range(8))
    assert list(windows(4, 8192)) == [0, 4, 8, 12]
    assert list(windows(1, 1)) == list(windows(64, 8192)) == list(windows(64, 64)) == [0]
    values = torch.arange(12.0).view(6, 2)
    trials = RowTrials.of(
        Candidate("reference", "r", right),
        {"values": (values,)},
        lambda rows: (Output((rows, 2), torch.float32),),
    )
    trial = trials.trial(2)
    assert [case.name for case in trial.cases] == ["values", "values from row 2", "values from row 4"]
    assert torch.equal(trial.cases[2].inputs[0], values[4:])
    assert isinstance(trial.prove(Candidate("right", "", right)), Proof)

    def wrong_in_the_last_rows(inputs: Tensors, outputs: Tensors) -> None:
        outputs[0].copy_(inputs[0] * (2 if inputs[0][0, 0] < 8 else 3))

    verdict = trial.prove(Candidate("wrong", "", wrong_in_the_last_rows))
    assert isinstance(verdict, Rejection)
    assert verdict.reason.startswith("case values from row 4, output 0 [0, 0]:")


def test_proofs_need_no_triton() -> None:
    """The table of proofs can be read, and the prover used, where Triton is not installed."""
    code = (
        "import sys; sys.modules['triton'] = None; import samebits.numerics.gpu.prover, samebits.numerics.gpu.proofs, "
        "samebits.numerics.gpu.roofline, samebits.numerics.gpu.buckets, samebits.bench.gemm"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
