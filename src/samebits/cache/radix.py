"""The prefix cache: a tree over token ids whose every edge is one full KV page.

A node stands for the exact tokens from the root down to it, so two texts share a page only when every token
before it is the same too. Roots are kept by namespace: what else the content of a page depends on (weight
version, adapter). The tree holds one reference of each of its pages, a request that uses a page another.

Only a page whose tokens were all computed and accepted may enter (trap 11), and a page in the tree is never
written again.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from samebits.cache.pages import PagePool


@dataclass(slots=True, eq=False)
class Node:
    """One page, or a root (page -1). `users` counts the requests whose path goes through here; a node with
    none can be evicted once its children are gone."""

    parent: Node | None
    key: bytes
    page: int
    children: dict[bytes, Node] = field(default_factory=dict)
    users: int = 0
    last_used: int = 0
    attached: bool = True
    """False once evicted or flushed: found by nobody, and nothing may be added below"""


class PrefixCache:
    """Finds, keeps and evicts pages by the tokens that they hold. Least recently used leaves go first."""

    def __init__(self, pool: PagePool, page_tokens: int) -> None:
        self.pool = pool
        self.page_tokens = page_tokens
        self.pages = 0
        """pages in the tree"""
        self.evictable_pages = 0
        """those of them that no request uses"""
        self._roots: dict[bytes, Node] = {}
        self._clock = 0
        self._leaves: list[tuple[int, int, Node]] = []
        """heap of (last used, tie-break, evictable leaf); an entry whose leaf was used since is stale"""
        self._tie_break = 0

    def root(self, namespace: bytes = b"") -> Node:
        """Where the paths of a namespace begin."""
        if namespace not in self._roots:
            self._roots[namespace] = Node(None, b"", -1)
        return self._roots[namespace]

    def match(self, node: Node, keys: Sequence[bytes], first_page: int, end_page: int) -> list[Node]:
        """The longest path below `node` along the keys of pages first_page, first_page + 1, … end_page - 1."""
        path: list[Node] = []
        for page in range(first_page, end_page):
            child = node.children.get(keys[page])
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def enter(self, path: Sequence[Node]) -> None:
        """A request goes on along `path`: its nodes and pages are kept until it leaves."""
        for node in path:
            if node.users == 0:
                self.evictable_pages -= 1
            node.users += 1
        self.pool.retain([node.page for node in path])

    def leave(self, node: Node) -> None:
        """A request that had come as far as `node` goes. Its page references are its own to give back."""
        self._clock += 1
        while node.parent is not None:
            node.users -= 1
            node.last_used = self._clock
            if node.users == 0 and node.attached:
                self.evictable_pages += 1
                if not node.children:
                    self._offer(node)
            node = node.parent

    def insert(self, node: Node, key: bytes, page: int) -> Node:
        """Add `page` below `node` for the request that computed it and has come as far as `node`."""
        assert node.attached and key not in node.children
        child = Node(node, key, page, users=1)
        node.children[key] = child
        self.pool.retain([page])
        self.pages += 1
        return child

    def evict(self, wanted: int) -> int:
        """Let go of up to `wanted` pages that no request uses, least recently used first. Returns how many."""
        done = 0
        while done < wanted and self._leaves:
            entry = heapq.heappop(self._leaves)
            if _is_fresh(entry):
                self._remove(entry[2])
                done += 1
        return done

    def flush(self) -> int:
        """Forget everything; returns the number of pages. What requests use stays theirs until they end."""
        dropped = 0
        for root in self._roots.values():
            root.attached = False
            for node in _below(root):
                node.attached = False
                self.pool.release([node.page])
                dropped += 1
        self._roots.clear()
        self._leaves.clear()
        self.pages = 0
        self.evictable_pages = 0
        return dropped

    def held_pages(self) -> list[int]:
        """The tree's page references, for the integrity check."""
        return [node.page for root in self._roots.values() for node in _below(root)]

    def pages_to(self, node: Node) -> list[int]:
        """The pages from the root down to `node`, for the integrity check."""
        pages = []
        while node.parent is not None:
            pages.append(node.page)
            node = node.parent
        return pages[::-1]

    def check(self) -> None:
        """Raise AssertionError when the tree contradicts itself."""
        nodes = [node for root in self._roots.values() for node in _below(root)]
        assert len(nodes) == self.pages, "the page count of the tree is wrong"
        assert sum(node.users == 0 for node in nodes) == self.evictable_pages, "the evictable count is wrong"
        live = {id(entry[2]) for entry in self._leaves if _is_fresh(entry)}
        for node in nodes:
            parent = node.parent
            assert parent is not None and parent.children[node.key] is node and node.attached, "broken edge"
            assert len(node.key) == TOKEN_BYTES * self.page_tokens, "a page in the tree is not full"
            assert parent.parent is None or parent.users >= node.users, "a path is used but not its beginning"
            assert node.users or node.children or id(node) in live, "an evictable leaf cannot be found"
            assert self.pool.references(node.page) > 0, "the tree holds a free page"

    def _offer(self, node: Node) -> None:
        if len(self._leaves) > 4 * self.pages + 64:
            self._leaves = [entry for entry in self._leaves if _is_fresh(entry)]
            heapq.heapify(self._leaves)
        self._tie_break += 1
        heapq.heappush(self._leaves, (node.last_used, self._tie_break, node))

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.key]
        node.attached = False
        self.pages -= 1
        self.evictable_pages -= 1
        self.pool.release([node.page])
        if parent.parent is not None and parent.users == 0 and not parent.children:
            self._offer(parent)


TOKEN_BYTES = 4


def token_data(tokens: Sequence[int]) -> bytes:
    """Token ids as int32, one after another."""
    return array("i", tokens).tobytes()


def page_keys(data: bytes, page_tokens: int, pages: int) -> list[bytes]:
    """The edge labels of the first `pages` full pages of tokens, which are given as `token_data`."""
    size = TOKEN_BYTES * page_tokens
    return [data[at : at + size] for at in range(0, pages * size, size)]


def _is_fresh(entry: tuple[int, int, Node]) -> bool:
    used, _, node = entry
    return node.attached and not node.users and not node.children and node.last_used == used


def _below(root: Node) -> Iterator[Node]:
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())
