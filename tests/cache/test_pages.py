"""The page allocator against a model of it: every page is free, or has as many references as owners."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samebits.cache.pages import OutOfPagesError, PagePool

MOVES = st.lists(
    st.tuples(st.sampled_from(["allocate", "retain", "release"]), st.integers(0, 7), st.integers(0, 30)),
    max_size=60,
)


@given(MOVES)
def test_pages_are_free_or_counted(moves: list[tuple[str, int, int]]) -> None:
    pool = PagePool(8)
    owners: list[list[int]] = []
    for move, count, which in moves:
        if move == "allocate":
            if count > pool.free:
                with pytest.raises(OutOfPagesError, match=f"{count} KV pages wanted"):
                    pool.allocate(count)
            else:
                pages = pool.allocate(count)
                assert len(set(pages)) == count
                assert not any(page in held for held in owners for page in pages)
                owners.append(pages)
        elif owners and move == "retain":
            pages = list(owners[which % len(owners)])
            pool.retain(pages)
            owners.append(pages)
        elif owners:
            pool.release(owners.pop(which % len(owners)))
        pool.check(owners)
        assert pool.used + pool.free == pool.total
        assert pool.used == len({page for held in owners for page in held})


def test_a_page_is_not_shared_or_released_when_it_is_free() -> None:
    pool = PagePool(3)
    (page,) = pool.allocate(1)
    pool.release([page])
    with pytest.raises(AssertionError, match=f"page {page} is free"):
        pool.retain([page])
    with pytest.raises(AssertionError, match="released more often"):
        pool.release([page])


def test_the_check_sees_a_leak_and_a_theft() -> None:
    pool = PagePool(3)
    pages = pool.allocate(2)
    with pytest.raises(AssertionError, match="1 references but 0 owners"):
        pool.check([pages[:1]])
    with pytest.raises(AssertionError, match="1 references but 2 owners"):
        pool.check([pages, pages[:1]])
    pool._free.append(pages[0])
    with pytest.raises(AssertionError, match="free list"):
        pool.check([pages])
