"""An answer as a row of blocks: thoughts, words, calls, each in its place and finished before the next begins.

The blocks depend on the text alone, never on the pieces that it comes in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from samebits.text.answer import AnswerDelta
from samebits.text.tool_calls import CallDelta

BlockKind = Literal["reasoning", "text", "call"]


class Change(Enum):
    """What happens to a block."""

    OPENED = 1
    GREW = 2
    CLOSED = 3


@dataclass
class Block:
    """One block, as much of it as has come."""

    index: int
    """its place in the answer"""
    kind: BlockKind
    name: str = ""
    """of a call: the function's"""
    number: int = 0
    """of a call: its place among the calls"""
    text: str = ""
    """thoughts, words, or a call's arguments"""


@dataclass(frozen=True)
class BlockEvent:
    """News of one block. `text` is what it grew by."""

    change: Change
    block: Block
    text: str = ""


class AnswerBlocks:
    """Puts the news of one answer into blocks."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open: Block | None = None

    def push(self, news: AnswerDelta, last: bool = False) -> list[BlockEvent]:
        """What `news` changes, in order. `last`: no more follows."""
        events: list[BlockEvent] = []
        if news.reasoning:
            events += self._grow("reasoning", news.reasoning)
        for part in news.parts:
            if isinstance(part, CallDelta):
                events += self._grow_call(part)
            else:
                events += self._grow("text", part)
        if last:
            events += self._close()
        return events

    def _grow(self, kind: BlockKind, text: str) -> Iterator[BlockEvent]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(Block(len(self.blocks), kind))
        yield self._add(text)

    def _grow_call(self, news: CallDelta) -> Iterator[BlockEvent]:
        block = self._open
        if block is None or block.kind != "call" or block.number != news.number:
            begun = Block(len(self.blocks), "call", news.name or "", news.number)
            yield from self._begin(begun)
        if news.arguments:
            yield self._add(news.arguments)

    def _add(self, text: str) -> BlockEvent:
        assert self._open is not None
        self._open.text += text
        return BlockEvent(Change.GREW, self._open, text)

    def _begin(self, block: Block) -> Iterator[BlockEvent]:
        yield from self._close()
        self._open = block
        self.blocks.append(block)
        yield BlockEvent(Change.OPENED, block)

    def _close(self) -> Iterator[BlockEvent]:
        if self._open is not None:
            yield BlockEvent(Change.CLOSED, self._open)
            self._open = None
