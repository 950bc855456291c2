"""A scheduler whose steps a test runs by hand."""

from __future__ import annotations

from small_engine import request

from samebits.cache.pages import PagePool
from samebits.schedule.foresight import Foresight
from samebits.schedule.request import Request, judge_token, new_request
from samebits.schedule.scheduler import Chunk, Scheduler, SchedulerLimits

CONTEXT = 400
TOKEN = 5


class Bench:
    """A scheduler whose steps are run by hand; every sampled token is TOKEN."""

    def __init__(
        self,
        step_tokens: int = 8,
        max_running: int = 4,
        pages: int = 40,
        page_tokens: int = 4,
        foresight: Foresight | None = None,
    ) -> None:
        limits = SchedulerLimits(step_tokens, max_running, page_tokens, CONTEXT // page_tokens)
        self.scheduler = Scheduler(limits, PagePool(pages), foresight)
        self.arrivals = 0
        self.served: list[str] = []
        """rids in the order in which they got their first output token"""

    def add(
        self, rid: str, length: int, new_tokens: int = 4, start: int = 0, priority: int = 0, **others: object
    ) -> Request:
        """Queue a request whose prompt is `start`, `start` + 1, …"""
        prompt = [(start + i) % 200 for i in range(length)]
        spec = request(rid, prompt, new_tokens, priority=priority, **others)
        made = new_request(spec, self.arrivals, frozenset(), CONTEXT)
        self.arrivals += 1
        self.scheduler.add(made)
        return made

    def step(self) -> dict[str, tuple[int, int]]:
        """Schedule and run one step; (start, end) of each chunk by rid."""
        chunks = self.scheduler.schedule()
        self.scheduler.check()
        assert sum(chunk.count for chunk in chunks) <= self.scheduler.limits.step_tokens
        self.scheduler.launch(chunks)
        for chunk in chunks:
            self._take(chunk)
        self.scheduler.check()
        return {chunk.request.rid: (chunk.start, chunk.end) for chunk in chunks}

    def _take(self, chunk: Chunk) -> None:
        done = chunk.request
        done.unread -= chunk.samples
        self.scheduler.settle(chunk)
        if chunk.samples:
            if done.rid not in self.served:
                self.served.append(done.rid)
            done.tokens.append(TOKEN)
            if judge_token(done, TOKEN):
                self.scheduler.finish(done)
        elif done.computed == done.length_limit:
            self.scheduler.finish(done)

    def run(self, most_steps: int = 5000) -> int:
        """Run to the end; the number of steps."""
        for number in range(most_steps):
            if not self.scheduler.requests():
                return number
            assert self.step(), "a step without work while requests are left"
        raise AssertionError("no end in sight")
