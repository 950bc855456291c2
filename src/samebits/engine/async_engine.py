"""The engine as asyncio code sees it: requests in, a stream of events for each out.

It neither knows nor cares whether the engine is a process or a thread. A slow reader holds nobody up: events
wait in the request's own mailbox, which can grow no larger than the request's output.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import count

from samebits.engine.messages import (
    AbortRequest,
    Command,
    EngineFacts,
    EngineFailed,
    EngineProgress,
    EngineReady,
    EngineRequest,
    EngineStatus,
    FlushCache,
    FlushReply,
    GetStatus,
    Message,
    ProfileReply,
    Reply,
    RequestEvent,
    StartProfile,
    StopProfile,
)
from samebits.engine.transport import Transport
from samebits.engine.validate import QueueFullError
from samebits.errors import ConfigError, EngineError, RequestError


class _Mailbox:
    """Events of one request that nobody has read yet."""

    def __init__(self) -> None:
        self.events: list[RequestEvent] = []
        self.news = asyncio.Event()

    def take(self) -> RequestEvent:
        """All news in one; there must be some."""
        events, self.events = self.events, []
        self.news.clear()
        return events[0] if len(events) == 1 else merged(events)


def merged(events: Sequence[RequestEvent]) -> RequestEvent:
    """What several events of one request say, in their order, as one."""
    first, last = events[0], events[-1]
    return RequestEvent(
        rid=first.rid,
        token_ids=[token_id for event in events for token_id in event.token_ids],
        logprobs=[entry for event in events for entry in event.logprobs],
        prompt_logprobs=first.prompt_logprobs,
        cached_tokens=max(event.cached_tokens for event in events),
        warnings=[warning for event in events for warning in event.warnings],
        finish=last.finish,
        queued_microseconds=first.queued_microseconds,
    )


class AsyncEngine:
    """Front of one engine. All methods belong to the event loop that called `start`."""

    def __init__(
        self, transport: Transport, on_progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        self._transport = transport
        self._on_progress = on_progress
        self._facts: EngineFacts | None = None
        self._mailboxes: dict[str, _Mailbox] = {}
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._call_numbers = count()
        self._started = False
        self.failure: EngineFailed | None = None
        self.failed = asyncio.Event()
        """set when the engine is dead; `failure` says why"""
        self._ready = asyncio.Event()

    @property
    def facts(self) -> EngineFacts:
        """Constants of the running engine."""
        assert self._facts is not None, "the engine is not started"
        return self._facts

    @property
    def running(self) -> int:
        """Requests whose stream is open."""
        return len(self._mailboxes)

    async def start(self) -> EngineFacts:
        """Start the engine and wait until it is ready. Raises what it failed with: `ConfigError` or its like
        as `ConfigError` (the message says what to do), anything else as `EngineError`."""
        self._started = True
        self._transport.start(self._deliver)
        waiters = [asyncio.ensure_future(self._ready.wait()), asyncio.ensure_future(self.failed.wait())]
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
        if self.failure is not None:
            if self.failure.user_error:
                raise ConfigError(self.failure.message)
            error = EngineError(self.failure.message)
            error.add_note(self.failure.traceback)
            raise error
        return self.facts

    async def stream(self, request: EngineRequest) -> AsyncGenerator[RequestEvent, None]:
        """Run a request; yields its events, the last one with `finish`; those of a slow reader are merged. Leaving
        early aborts it.

        Raises `QueueFullError` or `RequestError` when the engine refuses it, `EngineError` when the engine dies.
        """
        self._check_alive()
        if request.rid in self._mailboxes:
            raise RequestError(f"a request with the id {request.rid!r} is already running", "rid")
        mailbox = self._mailboxes[request.rid] = _Mailbox()
        finished = False
        try:
            self._transport.send(request)
            while not finished:
                if self.failure is None:
                    await mailbox.news.wait()
                if not mailbox.events:  # what had come before the engine died is good
                    self._check_alive()
                event = mailbox.take()
                finished = event.finish is not None
                _raise_refusal(event)
                yield event
        finally:
            del self._mailboxes[request.rid]
            if not finished:
                self._transport.send(AbortRequest(rid=request.rid))

    def abort(self, rid: str) -> None:
        """End a request; its stream finishes with the reason `abort`. Unknown ids are ignored."""
        if rid in self._mailboxes:
            self._transport.send(AbortRequest(rid=rid))

    def abort_all(self) -> None:
        """End every request."""
        for rid in list(self._mailboxes):
            self.abort(rid)

    async def flush_cache(self) -> int:
        """Drop every unreferenced page of the prefix cache; returns their number."""
        reply = await self._call(lambda call: FlushCache(call=call))
        assert isinstance(reply, FlushReply)
        return reply.pages

    async def status(self) -> EngineStatus:
        """Counters of the engine, between two steps."""
        reply = await self._call(lambda call: GetStatus(call=call))
        assert isinstance(reply, EngineStatus)
        return reply

    async def start_profile(self, folder: str) -> list[str]:
        """Begin to record a trace; returns its files. Raises `RequestError` when one is under way."""
        return await self._profile(lambda call: StartProfile(call=call, folder=folder))

    async def stop_profile(self) -> list[str]:
        """Write the trace; returns its files. Raises `RequestError` when none is under way."""
        return await self._profile(lambda call: StopProfile(call=call))

    async def _profile(self, command: Callable[[int], StartProfile | StopProfile]) -> list[str]:
        reply = await self._call(command)
        assert isinstance(reply, ProfileReply)
        if reply.error:
            raise RequestError(reply.error)
        return reply.paths

    async def shutdown(self) -> None:
        """Stop the engine and wait until it is gone. Requests that still run fail with `EngineError`."""
        if self.failure is None:
            self._fail(EngineFailed(message="the engine was shut down"))
        if self._started:
            await self._transport.stop()

    async def _call(self, command: Callable[[int], Command]) -> Reply:
        self._check_alive()
        call = next(self._call_numbers)
        future = self._calls[call] = asyncio.get_running_loop().create_future()
        self._transport.send(command(call))
        try:
            return await future
        finally:
            self._calls.pop(call, None)

    def _check_alive(self) -> None:
        if self.failure is not None:
            raise EngineError(self.failure.message)

    def _deliver(self, messages: list[Message]) -> None:
        for message in messages:
            match message:
                case RequestEvent():
                    mailbox = self._mailboxes.get(message.rid)
                    if mailbox is not None:  # else: left early, its abort is on the way
                        mailbox.events.append(message)
                        mailbox.news.set()
                case EngineStatus() | FlushReply() | ProfileReply():
                    future = self._calls.get(message.call)
                    if future is not None and not future.done():
                        future.set_result(message)
                case EngineProgress():
                    if self._on_progress is not None:
                        self._on_progress(message.stage, message.done, message.total)
                case EngineReady():
                    self._facts = message.facts
                    self._ready.set()
                case EngineFailed():
                    self._fail(message)

    def _fail(self, failure: EngineFailed) -> None:
        if self.failure is not None:
            return
        self.failure = failure
        self.failed.set()
        for mailbox in self._mailboxes.values():
            mailbox.news.set()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineError(failure.message))


def _raise_refusal(event: RequestEvent) -> None:
    if event.finish is None or not event.finish.refusal:
        return
    if event.finish.refusal == "queue_full":
        raise QueueFullError(event.finish.message)
    raise RequestError(event.finish.message, event.finish.field)
