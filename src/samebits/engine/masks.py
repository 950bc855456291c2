"""Grammar masks, as the engine sees them: which token ids a request may sample next.

A mask depends on the request's own output tokens alone. It is computed beside the forward, awaited by the
sampling of its own row and nobody else's, and never times out.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

import numpy as np

Mask = np.ndarray
"""int32 [ceil(vocabulary / 32)]: bit set of the allowed ids"""


class Matcher(Protocol):
    """The state of one request's grammar: a pure function of the output tokens accepted so far."""

    def accept(self, token_id: int) -> None:
        """Go on past an output token."""

    def mask(self) -> Future[Mask]:
        """What may come next. An exception in it fails the request, and no other."""


class MaskSource(Protocol):
    """Makes matchers."""

    def matcher(self, grammar: str) -> Matcher:
        """Returns at once. Raises `RequestError` for a grammar that is known to be wrong."""


class RequestMasks:
    """The masks of one request, handed out ahead of the tokens that they depend on.

    The row that samples output token `i` may be prepared before token `i - 1` is read; its future is made then,
    and fulfilled once the matcher has seen every token before it.
    """

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._accepted = 0
        self._asked = -1
        """output index of the last mask that the matcher was asked for"""
        self._awaited: dict[int, Future[Mask]] = {}
        self.failure: BaseException | None = None
        """why there is no next mask"""

    def mask_for(self, output_index: int) -> Future[Mask]:
        """The mask of output token `output_index`: of the next token to accept, or of one further on."""
        if output_index not in self._awaited:
            self._awaited[output_index] = Future()
            self._fulfil()
        return self._awaited[output_index]

    def accept(self, token_id: int) -> None:
        """The next output token was read."""
        self._awaited.pop(self._accepted, None)
        self._matcher.accept(token_id)
        self._accepted += 1
        self._fulfil()

    def _fulfil(self) -> None:
        future = self._awaited.get(self._accepted)
        if future is not None and self._asked != self._accepted:
            self._asked = self._accepted
            self._matcher.mask().add_done_callback(lambda source: self._copy(source, future))

    def _copy(self, source: Future[Mask], target: Future[Mask]) -> None:
        self.failure = source.exception()
        if self.failure is not None:
            target.set_exception(self.failure)
        else:
            target.set_result(source.result())
