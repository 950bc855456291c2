"""How requests share pages through the prefix cache.

A request enters with the longest cached prefix, adds each page that it fills, and takes over pages that
another request with the same tokens filled first. A running request claims the pages of its prompt that it will
fill; a later one that needs such a page next waits for it. So `n` samples of a prompt, or the same prompt sent
many times at once, are computed once. Whose page it is can never change a bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samebits.cache.pages import PagePool
from samebits.cache.radix import Node, PrefixCache, page_keys, token_data
from samebits.schedule.request import Phase, Request


class PageSharing:
    """The scheduler's dealings with the prefix cache."""

    def __init__(self, cache: PrefixCache, pool: PagePool, page_table: np.ndarray) -> None:
        self.cache = cache
        self._pool = pool
        self._page_table = page_table
        self._claims: dict[int, Request] = {}
        """who fills a page, by what the page will hold (`Request.page_chain`)"""

    def find(self, request: Request) -> list[Node]:
        """The cached prefix that a waiting request could enter with."""
        if not request.spec.use_prefix_cache:
            return []
        end = self._most_pages(request)
        return self.cache.match(self.cache.root(), self._keys(request, end), 0, end)

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
        """Take over what has been cached since; then whether an earlier request is filling the next page."""
        if request.node is None or request.computed != request.cache_depth * self.cache.page_tokens:
            return False
        self._take_over(request)
        depth = request.cache_depth
        if depth >= self._most_pages(request) or not request.node.attached:
            return False
        self._keys(request, depth + 1)
        owner = self._claims.get(request.page_chain[depth])
        if owner is not None and owner is not request and owner.order < request.order:
            return True
        if owner is not request:
            self._claim(request)
        return False

    def publish(self, request: Request) -> None:
        """Put the pages that the request has filled by now into the cache, or adopt the ones there."""
        full_pages = request.settled // self.cache.page_tokens
        while request.node is not None and request.node.attached and request.cache_depth < full_pages:
            depth = request.cache_depth
            key = self._keys(request, full_pages)[depth]
            known = request.node.children.get(key)
            if known is None:
                request.node = self.cache.insert(request.node, key, request.pages[depth])
                request.cache_depth += 1
            else:
                self._adopt(request, [known])
            self._unclaim(request, depth, depth + 1)

    def leave(self, request: Request) -> None:
        """The request gives its pages up (the caller releases them)."""
        if request.node is None:
            return
        self._unclaim(request, request.cache_depth, len(request.page_chain))
        self.cache.leave(request.node)
        request.node = None
        request.cache_depth = 0

    def flush(self) -> int:
        """Empty the cache; returns the number of its pages. Nobody running will add to it any more, so nobody
        is to wait for them either."""
        self._claims.clear()
        return self.cache.flush()

    def evict_for(self, pages: int) -> None:
        """Make `pages` pages free if eviction can."""
        missing = pages - self._pool.free
        if missing > 0:
            self.cache.evict(missing)

    def check(self, running: Sequence[Request]) -> None:
        """Raise AssertionError when requests and cache disagree."""
        self.cache.check()
        for request in running:
            path = [] if request.node is None else self.cache.pages_to(request.node)
            assert request.pages[: request.cache_depth] == path, "a request's pages are not those of its path"
            own = request.pages[request.cache_depth :]
            assert all(self._pool.references(page) == 1 for page in own), (
                "a page is shared outside of the cache"
            )
        for chain, request in self._claims.items():
            assert request.phase is Phase.RUNNING, "a request that does not run is said to fill a page"
            assert request.node is not None and request.node.attached, "a page is filled for no cache"
            assert chain in request.page_chain[request.cache_depth :], "a page is said to be filled twice"

    def _most_pages(self, request: Request) -> int:
        return max(0, request.reusable_tokens) // self.cache.page_tokens

    def _keys(self, request: Request, pages: int) -> list[bytes]:
        """The request's page keys, at least its first `pages` ones, made once; those of a prompt all at once."""
        keys, chain = request.page_keys, request.page_chain
        if len(keys) < pages:
            page_tokens = self.cache.page_tokens
            if not keys:
                keys += page_keys(request.prompt_data, page_tokens, request.prompt_length // page_tokens)
            if len(keys) < pages:
                rest = request.tokens[len(keys) * page_tokens : pages * page_tokens]
                keys += page_keys(token_data(rest), page_tokens, pages - len(keys))
            for key in keys[len(chain) :]:
                # A collision makes somebody wait for nothing; it changes no result.
                chain.append(hash((chain[-1] if chain else 0, key)))
        return keys

    def _claim(self, request: Request) -> None:
        """Claim the pages of the prompt from the next one on that no earlier request fills."""
        pages = request.prompt_length // self.cache.page_tokens
        self._keys(request, pages)
        for chain in request.page_chain[request.cache_depth : pages]:
            owner = self._claims.get(chain)
            if owner is None or request.order < owner.order:
                self._claims[chain] = request

    def _unclaim(self, request: Request, first_page: int, end_page: int) -> None:
        for chain in request.page_chain[first_page:end_page]:
            if self._claims.get(chain) is request:
                del self._claims[chain]

    def _take_over(self, request: Request) -> None:
        assert request.node is not None
        if request.node.attached:
            end = self._most_pages(request)
            first = request.cache_depth
            path = self.cache.match(request.node, self._keys(request, end), first, end)
            self._adopt(request, path)
            self._unclaim(request, first, first + len(path))
            if path:
                request.computed = request.settled = request.cache_depth * self.cache.page_tokens
                if not request.preemptions:
                    # What the request had computed itself by now is no hit.
                    request.cached_tokens += len(path) * self.cache.page_tokens

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
