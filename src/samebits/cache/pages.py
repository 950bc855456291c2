"""The allocator of KV pages: a fixed number of them, each with a reference count.

A page is storage and nothing else: which one a request gets can never change a bit. A page may be held by
several owners (requests that share a prefix, the prefix cache); it is free again when the last lets go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from samebits.errors import SamebitsError


class OutOfPagesError(SamebitsError):
    """More pages were asked for than are free. The scheduler asks first, so a user never sees this."""


class PagePool:
    """Pages `0 .. total - 1`. `allocate` and `retain` take a reference, `release` gives one back."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._references = [0] * total
        self._free = list(range(total - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages, each with one reference."""
        if count > len(self._free):
            raise OutOfPagesError(f"{count} KV pages wanted, {len(self._free)} free")
        if count == 0:
            return []
        pages = self._free[-count:]
        del self._free[-count:]
        pages.reverse()
        for page in pages:
            self._references[page] = 1
        return pages

    def retain(self, pages: Sequence[int]) -> None:
        """Add a reference to each page; they must be in use."""
        references = self._references
        for page in pages:
            if references[page] <= 0:
                raise AssertionError(f"page {page} is free and cannot be shared")
            references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Give one reference of each page back."""
        references = self._references
        for page in pages:
            count = references[page] - 1
            if count < 0:
                raise AssertionError(f"page {page} was released more often than it was taken")
            references[page] = count
            if count == 0:
                self._free.append(page)

    def references(self, page: int) -> int:
        return self._references[page]

    def check(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the reference counts are exactly those of the given owners' page lists."""
        expected = [0] * self.total
        for pages in owners:
            for page in pages:
                expected[page] += 1
        for page, (count, wanted) in enumerate(zip(self._references, expected, strict=True)):
            if count != wanted:
                raise AssertionError(f"page {page} has {count} references but {wanted} owners")
        free = set(self._free)
        if len(free) != len(self._free) or any(self._references[page] for page in free):
            raise AssertionError("the free list holds a page twice or a page in use")
        if len(free) + sum(count > 0 for count in self._references) != self.total:
            raise AssertionError("a page is neither free nor in use")
