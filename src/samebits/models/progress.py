"""How long-running work reports: a callback, and the terminal progress bar that may stand behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total), once at the start with done = 0 and then after each unit of work."""

SHOW_AFTER_SECONDS = 2.0


def silent(stage: str, done: int, total: int) -> None:
    """The progress of callers that show none."""


@contextmanager
def terminal_progress(show_after: float = SHOW_AFTER_SECONDS) -> Iterator[Progress]:
    """A bar on standard error for each stage that takes longer than `show_after` seconds; none off a terminal."""
    from tqdm import tqdm

    bars: dict[str, tqdm] = {}

    def progress(stage: str, done: int, total: int) -> None:
        bar = bars.get(stage)
        if bar is None:
            bar = bars[stage] = tqdm(
                total=total, desc=stage, delay=show_after, disable=None, leave=False, unit=""
            )
        bar.update(done - bar.n)
        if done >= total:
            bars.pop(stage).close()

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
