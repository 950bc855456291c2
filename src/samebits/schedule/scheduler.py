"""Which tokens the next step holds.

The rule, which is also the fairness rule: requests are served in one order, higher priority first and older
first among equals. A step takes one decode token of every running request in that order, then prefill chunks
in that order, of running requests and of waiting ones that it admits, until its token budget is spent. A waiting
request is admitted when its tokens fit now, and when it and those before it are expected to fit until each has
ended, or long enough to be worth it (`foresight.py`). Nobody is admitted past an earlier waiting request that is
not admitted yet, so a stream of long prompts delays a request by those before it in the order and by no other.
Who runs is not put out for one that waits, whatever its priority. When KV pages run out all the same, the last
request in the order gives its pages up and waits again; the first one is never preempted, so it always gets on.

Nothing decided here can change a bit of any result.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from samebits.cache.pages import PagePool
from samebits.cache.radix import Node, PrefixCache
from samebits.schedule.foresight import Foresight
from samebits.schedule.request import Phase, Request
from samebits.schedule.sharing import PageSharing

_LAST = (math.inf, 0)
"""An order after everybody's."""
_FEWEST_TO_CLEAR = 64


@dataclass(frozen=True)
class SchedulerLimits:
    """Sizes of a step. None of them may change a bit."""

    step_tokens: int
    max_running: int
    page_tokens: int
    pages_per_request: int
    """pages that the longest possible request needs"""


class Chunk(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Consecutive tokens of one request in one step: positions `start` to `end`."""

    request: Request
    start: int
    end: int
    samples: bool
    """whether the last of them is followed by sampling"""
    unread: bool
    """whether the last of them is a token that the step before is still sampling"""
    preemptions: int
    """the request's count when the chunk was made: a later one means that its pages are gone"""

    @property
    def count(self) -> int:
        return self.end - self.start


class Scheduler:
    """Owns the requests, their pages and the page table."""

    def __init__(self, limits: SchedulerLimits, pool: PagePool, foresight: Foresight | None = None) -> None:
        """Without `foresight`, whoever fits at this moment is admitted."""
        self.limits = limits
        self.pool = pool
        self.foresight = foresight
        self.cache = PrefixCache(pool, limits.page_tokens)
        self.running: list[Request] = []
        """in service order"""
        self.page_table = np.full((limits.max_running, limits.pages_per_request), -1, dtype=np.int32)
        self.preemptions = 0
        self._sharing = PageSharing(self.cache, pool, self.page_table)
        self._waiting: list[tuple[tuple[int, int], Request]] = []
        self._waiting_count = 0
        self._promised_pages = 0
        """that the running requests hold when each is as long as it may get"""
        self._by_rid: dict[str, Request] = {}
        self._free_slots = list(range(limits.max_running - 1, -1, -1))

    # Requests

    @property
    def waiting_count(self) -> int:
        return self._waiting_count

    def __contains__(self, rid: str) -> bool:
        return rid in self._by_rid

    def get(self, rid: str) -> Request | None:
        return self._by_rid.get(rid)

    def requests(self) -> list[Request]:
        """Every unfinished request, in order of submission."""
        return list(self._by_rid.values())

    def add(self, request: Request) -> None:
        """Queue a new request. Its rid must not be in use."""
        assert request.rid not in self._by_rid, request.rid
        self._by_rid[request.rid] = request
        self._enqueue(request)

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is, and give its pages back."""
        del self._by_rid[request.rid]
        if self.foresight is not None and request.output_length:
            cut = len(request.tokens) >= request.length_limit
            self.foresight.learn(request.output_length, cut)
        if request.phase is Phase.RUNNING:
            self._leave_running(request)
        else:
            self._waiting_count -= 1  # its heap entry is dropped when it comes up
            if len(self._waiting) > 2 * self._waiting_count + _FEWEST_TO_CLEAR:
                # Behind requests of higher priority it may never come up, and such entries must not pile up.
                self._waiting = [entry for entry in self._waiting if entry[1].phase is Phase.WAITING]
                heapq.heapify(self._waiting)
        request.phase = Phase.FINISHED

    # The step

    def schedule(self) -> list[Chunk]:
        """Choose the next step's chunks and give each the pages that it needs."""
        chunks: dict[Request, Chunk] = {}
        prefilling: list[Request] = []
        budget = self._serve_decoding(chunks, prefilling)
        for request in prefilling:
            budget = self._admit_before(request.order, budget, chunks)
            budget = self._serve(request, budget, chunks)
        self._admit_before(_LAST, budget, chunks)
        return list(chunks.values())

    def schedule_alone(self, request: Request) -> list[Chunk]:
        """The next chunk of this request, whose tokens are all read, and nobody else's. What it lacks for that is
        taken from the others, from the end of the order."""
        if request.phase is Phase.WAITING:
            while (path := self._entry(request)) is None:
                self.preempt(self.running[-1])
            self._waiting = [entry for entry in self._waiting if entry[1] is not request]
            heapq.heapify(self._waiting)
            self._admit(request, path)
        count = min(request.uncomputed, self.limits.step_tokens)
        wanted = self._pages_for(request.computed + count)
        while wanted - len(request.pages) > self._sharing.available_pages([]):
            self.preempt(next(other for other in reversed(self.running) if other is not request))
        self._extend_pages(request, wanted)
        return [self._chunk(request, count)]

    def launch(self, chunks: Sequence[Chunk]) -> None:
        """Note that a step with these chunks is on its way."""
        for chunk in chunks:
            chunk.request.computed = chunk.end
            chunk.request.unread += chunk.samples

    def undo(self, chunk: Chunk) -> None:
        """Forget a launched chunk whose first token was not known after all; it will be scheduled again."""
        request = chunk.request
        request.unread -= chunk.samples
        if request.phase is Phase.RUNNING and request.preemptions == chunk.preemptions:
            request.computed = chunk.start

    def settle(self, chunk: Chunk) -> None:
        """Note that the chunk's step has run and that what it stored is sound and belongs to accepted tokens."""
        request = chunk.request
        if request.phase is Phase.RUNNING and request.preemptions == chunk.preemptions:
            request.settled = chunk.end
            if chunk.end >= (request.cache_depth + 1) * self.limits.page_tokens:
                self._sharing.publish(request)

    def preempt(self, request: Request) -> None:
        """Put a running request back in the queue; it will be recomputed from its tokens."""
        self._leave_running(request)
        request.computed = 0
        request.settled = 0
        request.preemptions += 1
        self.preemptions += 1
        self._enqueue(request)

    def expected_pages(self) -> int:
        """The most pages that the running requests are expected to hold at once before they have ended."""
        if self.foresight is None or not self.running:
            return 0
        held = self._held_pages(self.running)
        return math.ceil(self.foresight.most_pages(self.running, held, self.limits.page_tokens))

    def flush_cache(self) -> int:
        """Empty the prefix cache; returns the number of its pages. Running requests keep what they use."""
        return self._sharing.flush()

    def check(self) -> None:
        """Raise AssertionError when queues, page table, prefix cache or page references disagree."""
        self.pool.check([*(request.pages for request in self.running), self.cache.held_pages()])
        self._sharing.check(self.running)
        assert len(self.running) + self._waiting_count == len(self._by_rid), "a request is in no queue"
        assert self.running == sorted(self.running, key=_order), "running requests are out of order"
        slots = [request.slot for request in self.running]
        promised = sum(self._pages_for(request.length_limit) for request in self.running)
        assert self._promised_pages == promised, "promised pages are miscounted"
        assert sorted(slots + self._free_slots) == list(range(self.limits.max_running)), "slots leak"
        for request in self.running:
            held = len(request.pages)
            assert held * self.limits.page_tokens >= request.computed, "tokens without pages"
            assert self.page_table[request.slot, :held].tolist() == request.pages, "page table is stale"
            assert request.settled <= request.computed <= request.length, "more is computed than there is"
            busy = request.uncomputed > 0 or request.settled < request.computed
            assert busy, "a running request has nothing to compute"

    # Inside

    def _serve_decoding(self, chunks: dict[Request, Chunk], prefilling: list[Request]) -> int:
        """Give their chunk to the running requests that want one token, and list those that want more; returns the
        budget that is left. Every step does this for every running request, so it calls nobody where it can."""
        budget = self.limits.step_tokens
        page_tokens = self.limits.page_tokens
        for request in tuple(self.running):
            start, unread, known = request.computed, request.unread, len(request.tokens)
            wanted = known + unread - start
            if request.held or (unread and known + unread >= request.length_limit) or request.slot < 0:
                continue  # its next token waits for one that is not known, or it was preempted just now
            if wanted > 1:
                prefilling.append(request)
            elif wanted == 1:
                # Inside a page of its own a token needs nothing: most of all requests in most steps.
                if budget > 0 and start % page_tokens and start < len(request.pages) * page_tokens:
                    samples = request.length_limit > request.prompt_length
                    chunks[request] = Chunk(
                        request, start, start + 1, samples, unread > 0, request.preemptions
                    )
                    budget -= 1
                else:
                    budget = self._serve(request, budget, chunks)
        return budget

    def _serve(self, request: Request, budget: int, chunks: dict[Request, Chunk]) -> int:
        """Give a running request its chunk, if it can have one now; returns the budget that is left."""
        # An earlier one may have preempted it in this very step, or be computing its next page.
        if budget <= 0 or request.phase is not Phase.RUNNING or self._sharing.must_wait(request):
            return budget
        count = min(request.uncomputed, budget)
        if request.computed + count > len(request.pages) * self.limits.page_tokens:
            budget += self._provide_pages(request, request.computed + count, chunks)
            if request.phase is not Phase.RUNNING:
                return budget
        chunks[request] = self._chunk(request, count)
        return budget - count

    def _admit_before(self, order: tuple[float, int], budget: int, chunks: dict[Request, Chunk]) -> int:
        """Admit and serve the waiting requests that come before `order`; returns the budget that is left."""
        while budget > 0 and (admitted := self._admit_next(order)) is not None:
            budget = self._serve(admitted, budget, chunks)
        return budget

    def _chunk(self, request: Request, count: int) -> Chunk:
        start, known = request.computed, len(request.tokens)
        end = start + count
        samples = end == known + request.unread and request.length_limit > request.prompt_length
        return Chunk(request, start, end, samples, end > known, request.preemptions)

    def _enqueue(self, request: Request) -> None:
        request.phase = Phase.WAITING
        heapq.heappush(self._waiting, (request.order, request))
        self._waiting_count += 1

    def _admit_next(self, before: tuple[float, int]) -> Request | None:
        """Move the first waiting request to the running ones if it fits and comes before `before`."""
        while self._waiting and self._waiting[0][1].phase is not Phase.WAITING:
            heapq.heappop(self._waiting)
        if not self._waiting:
            return None
        request = self._waiting[0][1]
        if request.order > before:
            return None
        if request.unread:
            return None  # preempted in this very step: its last token is not known yet
        path = self._entry(request)
        if path is None or not self._is_worth_a_start(request, path):
            return None
        heapq.heappop(self._waiting)
        self._admit(request, path)
        return request

    def _entry(self, request: Request) -> list[Node] | None:
        """The cached prefix with which a waiting request can enter now; None: it does not fit."""
        if not self._free_slots:
            return None
        # Room for the first sampled token too: admitting what must be preempted at once is waste.
        wanted = self._pages_for(min(len(request.tokens) + 1, request.length_limit))
        path = self._sharing.find(request)
        return path if wanted - len(path) <= self._sharing.available_pages(path) else None

    def _is_worth_a_start(self, request: Request, path: list[Node]) -> bool:
        """Whether a waiting request and those before it are expected to fit until each of them has ended, or long
        enough."""
        longest = self._pages_for(request.length_limit)
        if self.foresight is None or self._promised_pages + longest <= self.pool.total:
            return True
        # Those after it will give their pages up when it needs them.
        earlier = self.running[: bisect_left(self.running, request.order, key=_order)]
        if not earlier:
            return True
        requests = [*earlier, request]
        held = self._held_pages(requests)
        # What others use of its prefix is theirs.
        unused = self._sharing.available_pages([]) - self._sharing.available_pages(path)
        held[-1] = self._pages_for(request.length) - len(path) + unused
        return self.foresight.is_worth_a_start(requests, held, self.limits.page_tokens, self.pool.total)

    def _held_pages(self, requests: Sequence[Request]) -> np.ndarray:
        """The pages that these requests hold (float64 `[requests]`). Of those that several hold, each is taken to have
        its even share."""
        listed = sum(len(request.pages) for request in self.running)
        share = (self.pool.total - self._sharing.available_pages([])) / max(1, listed)
        return np.array([share * len(request.pages) for request in requests])

    def _admit(self, request: Request, path: list[Node]) -> None:
        """Let a request run that is in the queue no more, with pages for all its tokens."""
        self._waiting_count -= 1
        request.slot = self._free_slots.pop()
        request.phase = Phase.RUNNING
        self._promised_pages += self._pages_for(request.length_limit)
        insort(self.running, request, key=_order)
        self._sharing.enter(request, path)
        if not request.preemptions:
            request.cached_tokens = request.computed
        self._extend_pages(request, self._pages_for(len(request.tokens)))

    def _provide_pages(self, request: Request, tokens: int, chunks: dict[Request, Chunk]) -> int:
        """Give `request` pages for its first `tokens` tokens, preempting from the end of the order: perhaps the
        request itself. Returns the tokens of this step's chunks that were given up."""
        wanted = self._pages_for(tokens)
        given_up = 0
        while wanted - len(request.pages) > self._sharing.available_pages([]):
            victim = self.running[-1]
            if victim in chunks:
                given_up += chunks.pop(victim).count
            self.preempt(victim)
            if victim is request:
                return given_up
        self._extend_pages(request, wanted)
        return given_up

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.page_tokens)

    def _extend_pages(self, request: Request, wanted: int) -> None:
        held = len(request.pages)
        if wanted > held:
            self._sharing.evict_for(wanted - held)
            request.pages.extend(self.pool.allocate(wanted - held))
            self.page_table[request.slot, held:wanted] = request.pages[held:]

    def _leave_running(self, request: Request) -> None:
        del self.running[bisect_left(self.running, request.order, key=_order)]
        self._promised_pages -= self._pages_for(request.length_limit)
        self._sharing.leave(request)
        self.page_table[request.slot, : len(request.pages)] = -1
        self._free_slots.append(request.slot)
        self.pool.release(request.pages)
        request.pages = []
        request.slot = -1


def _order(request: Request) -> tuple[int, int]:
    return request.order
