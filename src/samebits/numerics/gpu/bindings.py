"""From wishes to bound kernels: what the store proves is restored, the rest is compiled, proven, timed and stored.

Ranks of one host have the same wishes and the same store. Each compiles and proves a part of what is missing, and
restores the rest from what the others stored; so all of them run the same kernels.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from samebits.errors import NumericsError
from samebits.numerics.gpu.launch import KernelSource, know_compiler, load
from samebits.numerics.gpu.operator import Problem, Wish
from samebits.numerics.gpu.proofs import ProofRecord, ProofStore
from samebits.numerics.gpu.prover import Candidate
from samebits.numerics.gpu.tuner import Stopwatch, bind, tuning_seconds

COMPILING, PROVING = "compiling kernels", "proving kernels"
MOST_COMPILERS = 32
PAUSE_SECONDS = 0.02
"""between the first work of two compilers"""
Progress = Callable[[str, int, int], None]
"""progress(stage, done, total)"""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sharing:
    """Ranks with GPUs of one kind and one store of proofs, which share the work of a first start."""

    rank: int = 0
    size: int = 1
    meet: Callable[[], None] = lambda: None
    """waits until every rank is there"""


ALONE = Sharing()


@dataclass(frozen=True)
class Bindings:
    """The candidate that serves each operator at each shape and bucket; nothing else may run."""

    candidates: dict[tuple[str, str, int], Candidate]
    records: tuple[ProofRecord, ...]

    def candidate(self, clause: str, problem: Problem, bucket: int) -> Candidate:
        """What serves an operator. Raises `NumericsError` where nothing is proven for it."""
        found = self.candidates.get((clause, problem.key, bucket))
        if found is None:
            raise NumericsError(
                f"nothing is proven for the {clause} clause, {problem.key}, at {bucket} rows; it was not asked for "
                "when the kernels were bound"
            )
        return found

    @property
    def identities(self) -> frozenset[str]:
        """Digests of binaries and names of library algorithms that may run."""
        return frozenset(candidate.identity for candidate in self.candidates.values())


def bind_all(
    wishes: Sequence[Wish[Any]],
    store: ProofStore,
    progress: Progress,
    stopwatch: Stopwatch = tuning_seconds,
    sharing: Sharing = ALONE,
) -> Bindings:
    """Bind every wish at every bucket, and keep new proofs in the store; all ranks of `sharing` do so together. Raises
    `NumericsError` where nothing is proven for one."""
    candidates, missing = restore_all(wishes, store)
    if sharing.size > 1:
        # Every rank meets the others twice, whatever it lacks itself.
        compile_all(distinct_sources(missing)[sharing.rank :: sharing.size], progress)
        sharing.meet()
        candidates |= prove_all(missing, store, progress, stopwatch, sharing)
        sharing.meet()
        store.read()
        others, missing = restore_all(limited(missing, lambda place: place not in candidates), store)
        candidates |= others
    if missing:
        candidates |= prove_all(missing, store, progress, stopwatch)
    records = [store.find(*place) for place in candidates]
    return Bindings(candidates, tuple(record for record in records if record is not None))


def restore_all(
    wishes: Sequence[Wish[Any]], store: ProofStore
) -> tuple[dict[tuple[str, str, int], Candidate], list[Wish[Any]]]:
    """What the store proves, and what is left to be proven."""
    candidates: dict[tuple[str, str, int], Candidate] = {}
    missing: list[Wish[Any]] = []
    for wish in wishes:
        buckets = []
        for bucket in wish.buckets:
            candidate = restored(wish, bucket, store)
            if candidate is None:
                buckets.append(bucket)
            else:
                candidates[place_of(wish, bucket)] = candidate
        if buckets:
            missing.append(Wish(wish.operator, wish.problem, tuple(buckets)))
    return candidates, missing


def limited(wishes: Sequence[Wish[Any]], wanted: Callable[[tuple[str, str, int]], bool]) -> list[Wish[Any]]:
    """The wishes, at the buckets whose places are wanted."""
    left = [
        Wish(
            wish.operator,
            wish.problem,
            tuple(bucket for bucket in wish.buckets if wanted(place_of(wish, bucket))),
        )
        for wish in wishes
    ]
    return [wish for wish in left if wish.buckets]


def place_of(wish: Wish[Any], bucket: int) -> tuple[str, str, int]:
    return wish.operator.clause, wish.problem.key, bucket


def restored(wish: Wish[Any], bucket: int, store: ProofStore) -> Candidate | None:
    """The candidate that the store proves, if the same machine code can be had again."""
    record = store.find(*place_of(wish, bucket))
    if record is None:
        return None
    recipe = wish.operator.restore(wish.problem, bucket, record.chosen, record.identity)
    if recipe is None:
        return None
    candidate = recipe.make()
    if candidate.identity != record.identity:
        logger.info(
            "%s, %s at %d rows: %s compiled to other code than was proven, so it is proven again",
            wish.operator.clause, wish.problem.key, bucket, record.chosen,
        )  # fmt: skip
        return None
    return candidate


def prove_all(
    wishes: Sequence[Wish[Any]],
    store: ProofStore,
    progress: Progress,
    stopwatch: Stopwatch,
    sharing: Sharing = ALONE,
) -> dict[tuple[str, str, int], Candidate]:
    """Compile, prove and time this rank's part of what is wished for; every shape's proofs are saved when it is done.
    All buckets of a shape are held against the same run of the reference, whoever proves them."""
    own = {
        place_of(wish, bucket)
        for number, wish in enumerate(wishes)
        # Many rows take the longest, and nobody gets those of every shape.
        for turn, bucket in enumerate(wish.buckets, start=number)
        if turn % sharing.size == sharing.rank
    }
    compile_all(distinct_sources(limited(wishes, own.__contains__)), progress)
    found: dict[tuple[str, str, int], Candidate] = {}
    total = len(own)
    progress(PROVING, 0, total)
    for wish in wishes:
        if own.isdisjoint(place_of(wish, bucket) for bucket in wish.buckets):
            continue
        for item in wish.operator.rounds(wish.problem, wish.buckets):
            if place_of(wish, item.bucket) not in own:
                continue
            bound = bind(wish.operator, wish.problem, item, stopwatch)
            found[place_of(wish, item.bucket)] = bound.candidate
            store.add(bound.record())
            progress(PROVING, len(found), total)
        store.save()
    return found


def distinct_sources(wishes: Sequence[Wish[Any]]) -> list[KernelSource]:
    """Every binary that may be wanted for them, in the same order on every rank."""
    every = (source for wish in wishes for source in wish.operator.sources(wish.problem, wish.buckets))
    return list(dict.fromkeys(every))


def unproven(wishes: Sequence[Wish[Any]], store: ProofStore) -> list[Wish[Any]]:
    """The wishes, at the buckets of which the store knows nothing."""
    return limited(wishes, lambda place: store.find(*place) is None)


def compilers() -> int:
    """Kernels that compile side by side: where there are many processors, Python's lock lets no more of them in."""
    return min(os.cpu_count() or 1, MOST_COMPILERS)


def compile_behind(sources: Iterable[KernelSource]) -> None:
    """Begin to compile side by side, and wait for nothing: who asks for one of them waits for that one. One that fails
    is met again where it is asked for. A process that ends waits for those under way, and begins no more."""
    waiting = SimpleQueue[KernelSource]()
    for source in dict.fromkeys(sources):
        waiting.put(source)

    def work() -> None:
        # No pool: at its end a process would wait for all that a pool holds.
        while threading.main_thread().is_alive():
            try:
                source = waiting.get_nowait()
            except Empty:
                return
            with suppress(BaseException):
                load(source)

    def begin() -> None:
        know_compiler()
        # What is on disk one thread finds in no time, and more would only take Python's lock from who loads weights.
        for number in range(compilers()):
            if waiting.empty() or not threading.main_thread().is_alive():
                return
            threading.Thread(target=work, name=f"samebits-compiler-{number}").start()
            time.sleep(PAUSE_SECONDS)

    if not waiting.empty():
        threading.Thread(target=begin, name="samebits-compilers").start()


def compile_all(sources: Iterable[KernelSource], progress: Progress) -> None:
    """Compile side by side. One that fails is met again, and rejected, where it is tried."""
    distinct = list(dict.fromkeys(sources))
    progress(COMPILING, 0, len(distinct))
    know_compiler()
    with ThreadPoolExecutor(compilers()) as pool:
        waiting = [pool.submit(load, source) for source in distinct]
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                if future.exception() is not None:
                    logger.debug("a kernel did not compile: %s", future.exception())
                progress(COMPILING, done, len(distinct))
        except BaseException:  # such as Ctrl-C: what has not begun need not be waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
