"""/metrics: the engine is asked for its counters when somebody looks, and at no other time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from samebits.errors import EngineError
from samebits.server.front import Front, Phase
from samebits.server.metrics import Moment

STATUS_SECONDS = 2.0
"""an engine in a longer step is not waited for: its last counters are shown"""


class MetricsRoutes:
    """Metrics of one server."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [Route("/metrics", self.metrics, methods=["GET"])]

    async def metrics(self, request: Request) -> Response:
        """Prometheus's text format, in every phase."""
        front = self._front
        alive = front.phase in (Phase.READY, Phase.DRAINING) and front.engine.failure is None
        if alive:
            with suppress(TimeoutError, EngineError):
                async with asyncio.timeout(STATUS_SECONDS):
                    front.metrics.last_status = await front.engine.status()
        facts = front.engine.facts if alive else None
        moment = Moment(front.phase is Phase.READY, facts, front.metrics.last_status)
        return Response(front.metrics.exposition(moment), media_type=CONTENT_TYPE_LATEST)
