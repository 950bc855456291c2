"""The engine's loop: requests in, events out, one step at a time. Token ids only; single-threaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from samebits.engine.loops import Loop
from samebits.engine.messages import (
    AbortRequest,
    EngineFacts,
    EngineRequest,
    EngineStatus,
    Finish,
    RequestEvent,
    TokenLogprobs,
)
from samebits.engine.runner import Runner
from samebits.engine.sampling_stage import SamplerTable
from samebits.engine.step import ChunkResult, PreparedStep, prepare_step
from samebits.engine.validate import QueueFullError, validate_request
from samebits.errors import RequestError
from samebits.schedule.request import Phase, Request, judge_token, new_request
from samebits.schedule.scheduler import Scheduler

FAULT_MESSAGES = {
    1: "the model's logits are not finite for this request",
    2: "no token is left to sample from after the masks of this request",
}


@dataclass
class Counters:
    """Totals since the engine started."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0


@dataclass
class Engine:
    """A model with its scheduler. Built by `engine.build.build_engine`."""

    facts: EngineFacts
    runner: Runner
    scheduler: Scheduler
    loop: Loop
    max_waiting: int
    counters: Counters = field(default_factory=Counters)
    _arrivals: int = 0
    _events: list[RequestEvent] = field(default_factory=list)
    """news that did not come out of a step: aborts"""

    def __post_init__(self) -> None:
        self._eos = frozenset(self.facts.eos_token_ids)
        self._sampler_table = SamplerTable(self.scheduler.limits.max_running)
        self._slot_owner: list[Request | None] = [None] * self.scheduler.limits.max_running

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Raises `RequestError` (`QueueFullError` when it may be sent again later)."""
        validate_request(request, self.facts)
        if request.rid in self.scheduler:
            raise RequestError(f"a request with rid {request.rid!r} is running already", "rid")
        if self.scheduler.waiting_count >= self.max_waiting:
            raise QueueFullError(f"the queue is full ({self.max_waiting} requests are waiting)")
        self.scheduler.add(new_request(request, self._arrivals, self._eos, self.facts.context_length))
        self._arrivals += 1

    def abort(self, command: AbortRequest) -> None:
        """Stop the named requests at once; their last events come out of the next `step`."""
        for request in self.scheduler.requests():
            named = request.rid.startswith(command.rid) if command.prefix else request.rid == command.rid
            if named or not command.rid:
                self._events.append(self._finish(request, Finish(reason="abort", message="aborted")))

    def has_work(self) -> bool:
        return bool(self._events or self.scheduler.running or self.scheduler.waiting_count)

    def step(self) -> list[RequestEvent]:
        """Take one turn of the loop and return the news. May return nothing while a step is on its way."""
        events, self._events = self._events, []
        for result in self.loop.turn(self._prepare):
            event = self._take(result)
            if event is not None:
                events.append(event)
        return events

    def status(self, call: int) -> EngineStatus:
        """Counters of this moment; `call` is echoed."""
        pool = self.scheduler.pool
        return EngineStatus(
            call=call,
            running=len(self.scheduler.running),
            waiting=self.scheduler.waiting_count,
            steps=self.counters.steps,
            kv_pages_total=pool.total,
            kv_pages_used=pool.used,
            prompt_tokens=self.counters.prompt_tokens,
            generated_tokens=self.counters.generated_tokens,
            cached_tokens=self.counters.cached_tokens,
            preemptions=self.scheduler.preemptions,
            cached_pages=self.scheduler.cache.pages,
        )

    def flush_cache(self) -> int:
        """Empty the prefix cache; returns the number of its pages. Running requests keep what they use."""
        return self.scheduler.cache.flush()

    def close(self) -> None:
        """Let go of threads; the engine cannot be used afterwards."""
        self.loop.close()

    def _prepare(self) -> PreparedStep | None:
        """The next step, noted as launched; None when there is nothing to compute."""
        chunks = self.scheduler.schedule()
        if not chunks:
            return None
        for chunk in chunks:
            self._load_sampler(chunk.request)
        step = prepare_step(
            chunks, self.scheduler.page_table, self.scheduler.limits.page_tokens, self._sampler_table
        )
        for chunk in chunks:
            self.scheduler.launch(chunk)
        self.counters.steps += 1
        return step

    def _load_sampler(self, request: Request) -> None:
        if self._slot_owner[request.slot] is not request:
            self._slot_owner[request.slot] = request
            self._sampler_table.load(request)

    def _take(self, result: ChunkResult) -> RequestEvent | None:
        """Apply a chunk's result to its request; the event to send, if there is news."""
        chunk, request = result.chunk, result.chunk.request
        if request.phase is Phase.FINISHED:
            return None  # it ended after this step was launched: nothing of the step is kept
        request.unread -= chunk.samples
        if result.faulty:
            return self._fail(request, "a key or value of this request is not finite")
        self.scheduler.settle(chunk)
        self.counters.prompt_tokens += max(0, min(chunk.end, request.prompt_length) - chunk.start)
        for score in result.scored:
            if score is None:
                return self._fail(request, FAULT_MESSAGES[1])
            assert request.prompt_logprobs is not None
            request.prompt_logprobs.append(score)
        if result.sampled is None:
            ended = chunk.end == request.length_limit and not request.samples
            return self._finish(request, Finish(reason="length")) if ended else None
        if result.sampled.fault:
            return self._fail(request, FAULT_MESSAGES[result.sampled.fault])
        return self._append(request, result.sampled.token_id, result.sampled.logprobs)

    def _append(self, request: Request, token_id: int, logprobs: TokenLogprobs | None) -> RequestEvent:
        request.tokens.append(token_id)
        self.counters.generated_tokens += 1
        finish = judge_token(request, token_id)
        if finish is not None:
            self._release(request, finish)
        return self._event(request, [token_id], [] if logprobs is None else [logprobs])

    def _fail(self, request: Request, message: str) -> RequestEvent:
        return self._finish(request, Finish(reason="error", message=message))

    def _finish(self, request: Request, finish: Finish) -> RequestEvent:
        self._release(request, finish)
        return self._event(request, [], [])

    def _release(self, request: Request, finish: Finish) -> None:
        request.finish = finish
        self.scheduler.finish(request)

    def _event(self, request: Request, token_ids: list[int], logprobs: list[TokenLogprobs]) -> RequestEvent:
        first = not request.announced
        request.announced = True
        assert request.finish is None or request.phase is Phase.FINISHED
        return RequestEvent(
            rid=request.rid,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=request.prompt_logprobs if first else None,
            cached_tokens=request.cached_tokens,
            finish=request.finish,
        )
