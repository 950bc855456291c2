"""Which requests must have ended by when."""

from __future__ import annotations

import heapq

from samebits.schedule.request import Phase, Request

_FEWEST_TO_CLEAR = 64


class Deadlines:
    """Unfinished requests by their deadline. What a step pays does not grow with their number."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._clear_at = _FEWEST_TO_CLEAR

    def add(self, request: Request) -> None:
        """Watch a request, if it has a deadline."""
        if request.spec.deadline is None:
            return
        if len(self._heap) >= self._clear_at:
            # Most requests end long before their deadline; what is left of them must not pile up.
            self._heap = [entry for entry in self._heap if entry[2].phase is not Phase.FINISHED]
            heapq.heapify(self._heap)
            self._clear_at = max(_FEWEST_TO_CLEAR, 2 * len(self._heap))
        heapq.heappush(self._heap, (request.spec.deadline, request.arrival, request))

    def __bool__(self) -> bool:
        return bool(self._heap)

    def take_expired(self, now: float) -> list[Request]:
        """The unfinished requests whose deadline is `now` or before, the earliest first; they are watched no more."""
        expired = []
        while self._heap and self._heap[0][0] <= now:
            request = heapq.heappop(self._heap)[2]
            if request.phase is not Phase.FINISHED:
                expired.append(request)
        return expired
