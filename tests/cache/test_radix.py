"""The prefix cache against a model of it: a set of texts, each with a time of last use."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samebits.cache.pages import PagePool
from samebits.cache.radix import Node, PrefixCache, page_keys, token_data

PAGE_TOKENS = 2
PAGES = 40
# Few different tokens, so that texts share prefixes.
TEXT = st.lists(st.integers(0, 1), min_size=1, max_size=10)


def keys_of(tokens: list[int]) -> list[bytes]:
    return page_keys(token_data(tokens), PAGE_TOKENS, len(tokens) // PAGE_TOKENS)


class User:
    """A request that computes a text and holds its pages."""

    def __init__(self, cache: PrefixCache, tokens: list[int]) -> None:
        self.cache, self.keys = cache, keys_of(tokens)
        path = cache.match(cache.root(), self.keys, 0, len(self.keys))
        self.hits = len(path)
        cache.enter(path)
        cache.evict(max(0, len(self.keys) - len(path) - cache.pool.free))
        self.pages = [node.page for node in path] + cache.pool.allocate(len(self.keys) - len(path))
        self.node: Node = path[-1] if path else cache.root()
        for depth in range(len(path), len(self.keys)):
            self.node = cache.insert(self.node, self.keys[depth], self.pages[depth])

    def end(self) -> None:
        self.cache.leave(self.node)
        self.cache.pool.release(self.pages)


def cached(cache: PrefixCache, tokens: list[int]) -> int:
    keys = keys_of(tokens)
    return len(cache.match(cache.root(), keys, 0, len(keys)))


def checked(cache: PrefixCache, users: list[User]) -> None:
    cache.check()
    cache.pool.check([*(user.pages for user in users), cache.held_pages()])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("sssseef"), TEXT, st.integers(0, 9)), max_size=40))
def test_it_finds_what_was_put_in(moves: list[tuple[str, list[int], int]]) -> None:
    cache = PrefixCache(PagePool(PAGES), PAGE_TOKENS)
    users: list[User] = []
    texts: set[tuple[bytes, ...]] = {()}
    for move, tokens, number in moves:
        if move == "s" and len(users) < 6:
            user = User(cache, tokens)
            known = max(n for n in range(len(user.keys) + 1) if tuple(user.keys[:n]) in texts)
            assert user.hits == known
            texts |= {tuple(user.keys[:n]) for n in range(len(user.keys) + 1)}
            users.append(user)
        elif move == "e" and users:
            users.pop(number % len(users)).end()
        elif move == "f":
            cache.flush()
            texts = {()}
            for user in users:  # they go on alone; a new text starts from an empty tree
                user.end()
            users = []
        checked(cache, users)
    for user in users:
        user.end()
    cache.flush()
    assert cache.pool.free == PAGES


def common_pages(one: list[int], other: list[int]) -> int:
    """Full pages from the start that two texts have in common."""
    pairs = zip(keys_of(one), keys_of(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@settings(deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=8, unique_by=tuple), st.integers(1, 6))
def test_eviction_takes_unused_leaves_in_order_of_last_use(texts: list[list[int]], wanted: int) -> None:
    cache = PrefixCache(PagePool(PAGES), PAGE_TOKENS)
    kept = User(cache, texts[0])
    for tokens in texts[1:]:
        User(cache, tokens).end()
    before = cache.pages
    evictable = cache.evictable_pages
    assert cache.evict(wanted) == min(wanted, evictable)
    checked(cache, [kept])
    assert cache.pages == before - min(wanted, evictable)
    assert cached(cache, texts[0]) == len(kept.keys), "a page in use was evicted"
    if cache.evictable_pages:
        # The text that was used last loses a page only when the others have none left but those they share
        # with it or with the text in use.
        lost = len(keys_of(texts[-1])) - cached(cache, texts[-1])
        for text in texts[1:-1]:
            shared = max(common_pages(text, texts[0]), common_pages(text, texts[-1]))
            assert lost == 0 or cached(cache, text) <= shared
    assert cache.evict(PAGES) == cache.evictable_pages or cache.evictable_pages == 0


def test_the_least_recently_used_text_goes_first() -> None:
    cache = PrefixCache(PagePool(PAGES), PAGE_TOKENS)
    old, middle, new = [1] * 4, [2] * 4, [3] * 4
    for tokens in (old, middle, new, old):  # the first one is used again
        User(cache, tokens).end()
    cache.evict(2)
    assert [cached(cache, tokens) for tokens in (old, middle, new)] == [2, 0, 2]


def test_a_text_is_evicted_from_its_end() -> None:
    cache = PrefixCache(PagePool(PAGES), PAGE_TOKENS)
    User(cache, [1, 2, 3, 4, 5, 6]).end()
    for left in (2, 1, 0):
        assert cache.evict(1) == 1
        assert cached(cache, [1, 2, 3, 4, 5, 6]) == left
    assert cache.evict(1) == 0


def test_the_same_tokens_after_another_prefix_are_another_page() -> None:
    cache = PrefixCache(PagePool(PAGES), PAGE_TOKENS)
    User(cache, [1, 1, 5, 5]).end()
    User(cache, [2, 2]).end()
    assert cached(cache, [2, 2, 5, 5]) == 1
    assert cached(cache, [5, 5]) == 0


def test_namespaces_share_nothing() -> None:
    cache = PrefixCache(PagePool(PAGES), PAGE_TOKENS)
    User(cache, [1, 1]).end()
    keys = keys_of([1, 1])
    assert cache.match(cache.root(b"other weights"), keys, 0, 1) == []
    assert len(cache.match(cache.root(), keys, 0, 1)) == 1


def test_a_flush_spares_what_is_in_use() -> None:
    cache = PrefixCache(PagePool(PAGES), PAGE_TOKENS)
    user = User(cache, [1, 1, 2, 2])
    User(cache, [3, 3]).end()
    assert cache.flush() == 3
    assert cache.pool.used == 2
    checked(cache, [user])
    user.end()
    assert cache.pool.used == 0
    checked(cache, [])


def test_the_check_sees_a_broken_tree() -> None:
    def broken(spoil: str) -> PrefixCache:
        cache = PrefixCache(PagePool(PAGES), PAGE_TOKENS)
        user = User(cache, [1, 1, 2, 2])
        if spoil == "users":
            user.node.users += 1
        elif spoil == "count":
            cache.pages += 1
        elif spoil == "edge":
            user.node.key = b"else"
        return cache

    broken("nothing").check()
    for spoil, message in (("users", "beginning"), ("count", "page count"), ("edge", "broken edge|not full")):
        with pytest.raises((AssertionError, KeyError), match=message if spoil != "edge" else None):
            broken(spoil).check()
