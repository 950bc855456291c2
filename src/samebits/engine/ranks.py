"""Rank 0's side of tensor parallelism: the processes of the other ranks, what they are told, and how they end.

Rank 0 decides everything: it schedules, samples and talks to the outside. The others are told each forward and
each product of logits, run the same model code over their shard, and meet rank 0 in the collectives.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.folders import OwnedFolder
from samebits.engine.leaving import THREAD
from samebits.engine.rank_worker import Failed, Order, Stop, rank_process
from samebits.errors import RanksLostError
from samebits.numerics.collectives.gloo import GlooGroup

LAST_WORDS_SECONDS = 3.0
"""how long rank 0, when a collective broke, waits to hear which rank it was"""
STOP_SECONDS = 5.0
LET_GO_SECONDS = 3.0
"""how long `let_go` is waited for"""
Result = TypeVar("Result")

log = logging.getLogger(__name__)


class RankProcesses:
    """Ranks 1 .. size - 1. Making one starts them; they load their shards while this process loads its own."""

    def __init__(self, model: ModelConfig, engine: EngineConfig, default_seed: int | None, size: int) -> None:
        self._folder = OwnedFolder("ranks-")
        self.meeting = meeting = self._folder.path / "meeting"
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._lost: str = ""
        self.let_go: Callable[[], None] = lambda: None
        """ends what this process waits for in the others: called when they have left, and by another thread as soon as
        one is found dead"""
        self._noticed = threading.Event()
        self._closing = False
        self._all_left, self._was_let_go = threading.Event(), threading.Event()
        """all ranks have left; what is shared with them has been let go of"""
        context = multiprocessing.get_context("spawn")
        for rank in range(1, size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=rank_process,
                args=(model, engine, default_seed, rank, size, meeting, theirs),
                name=f"samebits-rank-{rank}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        threading.Thread(target=self._watch, name=THREAD, daemon=True).start()
        try:
            self.group = self.explained(lambda: GlooGroup(meeting, 0, size))
        except RanksLostError:
            self.close()
            raise

    def tell(self, order: Order) -> None:
        """Send an order to every rank. Raises `RanksLostError` when one is gone."""
        self.check()
        try:
            told = ForkingPickler.dumps(order)
            for pipe in self._pipes:
                pipe.send_bytes(told)
        except OSError as error:
            raise self.explanation(error) from error

    def explained(self, work: Callable[[], Result]) -> Result:
        """Do rank 0's part of something that all ranks do. Whatever goes wrong in it leaves the ranks out of step,
        so it is raised as `RanksLostError`, with the traceback of the rank that failed where one did."""
        try:
            return work()
        except Exception as error:
            raise self.explanation(error) from error

    def explanation(self, error: Exception) -> RanksLostError:
        """What to raise for an error that left the ranks out of step; waits a little for the rank to blame."""
        self._noticed.wait(LAST_WORDS_SECONDS)
        return RanksLostError(self._lost or f"rank 0 failed: {type(error).__name__}: {error}")

    def check(self) -> None:
        """Raises `RanksLostError` when a rank has died."""
        if self._lost:
            raise RanksLostError(self._lost)

    def close(self) -> None:
        """End the ranks; those that do not leave are killed."""
        self._closing = True
        for pipe in self._pipes:
            try:
                pipe.send(Stop())
            except OSError:
                continue
        last = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            process.join(max(last - time.monotonic(), 0))
            if process.is_alive():
                process.kill()
                process.join()
        self._all_left.set()
        if not self._was_let_go.wait(LET_GO_SECONDS):
            log.warning("what the ranks shared on the devices is left as it is: it was not let go of in time")
        self._folder.remove()

    def _let_go(self) -> None:
        with contextlib.suppress(RuntimeError):  # of a device that has failed
            self.let_go()

    def _watch(self) -> None:
        """Notice the first rank that ends, and keep what it said of the reason; let go of what is shared then, and when
        all have left. A thread that is there already, for a process that ends can start none."""
        sentinels = {process.sentinel: index for index, process in enumerate(self._processes)}
        ended: list[Any] = wait(list(sentinels))
        if not self._closing:
            self._lost = self._told_by(sentinels[ended[0]])
            self._noticed.set()
            log.error("%s", self._lost)
            self._let_go()
        self._all_left.wait()
        self._let_go()
        self._was_let_go.set()

    def _told_by(self, index: int) -> str:
        process, pipe = self._processes[index], self._pipes[index]
        process.join()
        rank = index + 1
        try:
            while pipe.poll():
                message = pipe.recv()
                if isinstance(message, Failed):
                    return f"rank {rank} failed: {message.message}\n{message.traceback}".rstrip()
        except (EOFError, OSError):
            pass
        return f"the process of rank {rank} ended unexpectedly with exit status {process.exitcode}"
