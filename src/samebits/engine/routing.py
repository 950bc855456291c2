"""Which of several equal engines a request goes to. It decides speed alone: replicas of one plan give the same bits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

ROUTING_PAGE_TOKENS = 64
"""prompts are compared in pieces of this many tokens"""
REMEMBERED_PIECES = 65536
"""of each replica, the last used ones"""
PREFIX_SLACK = 4
"""a cached prefix may draw a request to a replica that runs at most this many more than the least loaded one"""


@dataclass
class _Replica:
    running: set[str] = field(default_factory=set)
    pieces: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def remember(self, pieces: Sequence[int]) -> None:
        for piece in pieces:
            self.pieces[piece] = None
            self.pieces.move_to_end(piece)
        while len(self.pieces) > REMEMBERED_PIECES:
            self.pieces.popitem(last=False)

    def known(self, pieces: Sequence[int]) -> int:
        """How many leading pieces this replica has seen."""
        for count, piece in enumerate(pieces):
            if piece not in self.pieces:
                return count
        return len(pieces)


class Router:
    """Requests to replicas: among those whose load is near the least, the one that knows most of the prompt; then
    the least loaded; then the first."""

    def __init__(self, replicas: int) -> None:
        self._replicas = [_Replica() for _ in range(replicas)]
        self._owner: dict[str, int] = {}

    def place(self, rid: str, prompt: Sequence[int], wanted: int | None = None) -> int:
        """Choose a replica, or take the `wanted` one, and note that it runs the request."""
        pieces = prefix_pieces(prompt)
        index = self._choose(pieces) if wanted is None else wanted
        replica = self._replicas[index]
        replica.running.add(rid)
        replica.remember(pieces)
        self._owner[rid] = index
        return index

    def owner(self, rid: str) -> int | None:
        """The replica of a running request."""
        return self._owner.get(rid)

    def finish(self, rid: str) -> None:
        """A request ended."""
        index = self._owner.pop(rid, None)
        if index is not None:
            self._replicas[index].running.discard(rid)

    def load(self, index: int) -> int:
        """Requests that a replica runs or has waiting."""
        return len(self._replicas[index].running)

    def _choose(self, pieces: Sequence[int]) -> int:
        least = min(len(replica.running) for replica in self._replicas)
        near = [
            index
            for index, replica in enumerate(self._replicas)
            if len(replica.running) <= least + PREFIX_SLACK
        ]
        return min(near, key=lambda index: (-self._replicas[index].known(pieces), self.load(index), index))


def prefix_pieces(prompt: Sequence[int]) -> list[int]:
    """A hash for every whole piece of a prompt; each stands for all tokens up to its end."""
    pieces: list[int] = []
    last = 0
    for start in range(0, len(prompt) - ROUTING_PAGE_TOKENS + 1, ROUTING_PAGE_TOKENS):
        last = hash((last, *prompt[start : start + ROUTING_PAGE_TOKENS]))
        pieces.append(last)
    return pieces
