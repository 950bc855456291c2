"""How requests share pages through the prefix cache.

A request enters with the longest cached prefix, adds each page that it fills, and takes over pages that
another request with the same tokens filled first. While an earlier request is computing the very page that a
later one needs next, the later one waits for it: so `n` samples of a prompt, or the same prompt sent many
times at once, are computed once. Whose page it is can never change a bit.
"""

from __future__ import annotations

import numpy as np

from samebits.cache.pages import PagePool
from samebits.cache.radix import Node, PrefixCache
from samebits.schedule.request import Phase, Request

NextPage = tuple[Node, bytes]


class PageSharing:
    """The scheduler's dealings with the prefix cache."""

    def __init__(self, cache: PrefixCache, pool: PagePool, page_table: np.ndarray) -> None:
        self.cache = cache
        self._pool = pool
        self._page_table = page_table
        self._computing: dict[NextPage, Request] = {}
        """which request is computing a page that others may be waiting for"""
        self._next_page: dict[Request, NextPage] = {}

    def find(self, request: Request) -> list[Node]:
        """The cached prefix that a waiting request could enter with."""
        if not request.spec.use_prefix_cache:
            return []
        return self.cache.match(self.cache.root(), request.tokens, 0, self._most_pages(request))

    def available_pages(self, path: list[Node]) -> int:
        """Pages that could be had, free or by eviction, while `path` is kept."""
        kept = sum(node.users == 0 for node in path)
        return self._pool.free + self.cache.evictable_pages - kept

    def enter(self, request: Request, path: list[Node]) -> None:
        """Start an admitted request on its cached prefix."""
        if not request.spec.use_prefix_cache:
            return
        self.cache.enter(path)
        request.node = path[-1] if path else self.cache.root()
        request.cache_depth = len(path)
        request.pages = [node.page for node in path]
        request.computed = request.settled = len(path) * self.cache.page_tokens
        self._page_table[request.slot, : len(path)] = request.pages

    def must_wait(self, request: Request) -> bool:
        """Take over what has been cached since; then whether an earlier request is computing the next page."""
        if request.node is None or request.computed != request.cache_depth * self.cache.page_tokens:
            return False
        self._take_over(request)
        if request.cache_depth >= self._most_pages(request) or not request.node.attached:
            return False
        wanted = (request.node, self.cache.page_key(request.tokens, request.cache_depth))
        owner = self._computing.get(wanted)
        if owner is not None and owner is not request:
            if owner.order < request.order:
                return True
            self._forget_next_page(owner)
        self._forget_next_page(request)
        self._computing[wanted] = request
        self._next_page[request] = wanted
        return False

    def publish(self, request: Request) -> None:
        """Put the pages that the request has filled by now into the cache, or adopt the ones there."""
        full_pages = request.settled // self.cache.page_tokens
        while request.node is not None and request.node.attached and request.cache_depth < full_pages:
            key = self.cache.page_key(request.tokens, request.cache_depth)
            known = request.node.children.get(key)
            if known is None:
                request.node = self.cache.insert(request.node, key, request.pages[request.cache_depth])
                request.cache_depth += 1
            else:
                self._adopt(request, [known])
        if request.settled >= request.prompt_length:
            self._forget_next_page(request)

    def leave(self, request: Request) -> None:
        """The request gives its pages up (the caller releases them)."""
        self._forget_next_page(request)
        if request.node is not None:
            self.cache.leave(request.node)
        request.node = None
        request.cache_depth = 0

    def evict_for(self, pages: int) -> None:
        """Make `pages` pages free if eviction can."""
        missing = pages - self._pool.free
        if missing > 0:
            self.cache.evict(missing)

    def check(self) -> None:
        """Raise AssertionError when requests and cache disagree."""
        self.cache.check()
        for request, wanted in self._next_page.items():
            assert request.phase is Phase.RUNNING, "a request that does not run is said to compute a page"
            assert self._computing[wanted] is request, "two requests are said to compute one page"
        assert len(self._computing) == len(self._next_page), "a page is said to be computed by nobody"

    def _most_pages(self, request: Request) -> int:
        return max(0, request.reusable_tokens) // self.cache.page_tokens

    def _take_over(self, request: Request) -> None:
        assert request.node is not None
        if request.node.attached:
            end = self._most_pages(request)
            path = self.cache.match(request.node, request.tokens, request.cache_depth, end)
            self._adopt(request, path)
            if path:
                request.computed = request.settled = request.cache_depth * self.cache.page_tokens
                if not request.preemptions:
                    request.cached_tokens = request.computed

    def _adopt(self, request: Request, path: list[Node]) -> None:
        """Go on along `path`, using its pages in place of the request's own."""
        if not path:
            return
        self.cache.enter(path)
        first, end = request.cache_depth, request.cache_depth + len(path)
        self._pool.release(request.pages[first:end])
        request.pages[first:end] = [node.page for node in path]
        self._page_table[request.slot, first:end] = request.pages[first:end]
        request.node = path[-1]
        request.cache_depth = end

    def _forget_next_page(self, request: Request) -> None:
        wanted = self._next_page.pop(request, None)
        if wanted is not None:
            del self._computing[wanted]
