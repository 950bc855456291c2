"""The engine's loop: requests in, events out, one step at a time. Token ids only; single-threaded."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field

import msgspec

from samebits.engine.deadlines import Deadlines
from samebits.engine.histogram import STEP_SECONDS, Histogram
from samebits.engine.loops import Loop, StepFailure
from samebits.engine.masks import MaskSource, RequestMasks
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
from samebits.engine.sampling_stage import MASK_FAILED, SamplerTable
from samebits.engine.step import ChunkResult, HeldRow, PreparedStep, prepare_step
from samebits.engine.validate import QueueFullError, validate_request
from samebits.errors import RequestError
from samebits.grammar.compiler import GrammarError
from samebits.schedule.request import Phase, Request, judge_token, new_request
from samebits.schedule.scheduler import Chunk, Scheduler

log = logging.getLogger(__name__)

NOTHING_LEFT = 2
FAULT_MESSAGES = {
    1: "the model's logits are not finite for this request",
    NOTHING_LEFT: "no token is left to sample from after the masks of this request",
    MASK_FAILED: "the grammar of this request failed",
}


@dataclass
class Counters:
    """Totals since the engine started."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Suspect:
    """A request of a step that raised. It runs alone until it is past what that step held of it."""

    request: Request
    end: int
    """tokens that must have been computed for that"""

    @property
    def is_cleared(self) -> bool:
        return self.request.phase is Phase.FINISHED or self.request.settled >= self.end


@dataclass
class Engine:
    """A model with its scheduler. Built by `engine.build.build_engine`."""

    facts: EngineFacts
    runner: Runner
    scheduler: Scheduler
    loop: Loop
    max_waiting: int
    mask_source: MaskSource | None = None
    mask_wait_seconds: float = 0.02
    """how long a turn with nothing else to do waits for a mask, before it looks for new requests again"""
    check_ranks: Callable[[], None] = lambda: None
    """raises `RanksLostError` when a process that shares the model has died"""
    close_ranks: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    """what deadlines are readings of"""
    prefix_cache: bool = True
    """False: every request is computed from its first token, whatever it asks for"""
    counters: Counters = field(default_factory=Counters)
    step_times: Histogram = field(default_factory=lambda: Histogram(STEP_SECONDS))
    """seconds of each turn that finished a step"""
    _arrivals: int = 0
    _events: list[RequestEvent] = field(default_factory=list)
    """news that did not come out of a step: aborts, deadlines that have passed"""
    _suspects: deque[Suspect] = field(default_factory=deque)
    """after a step that raised: whom to run alone, the first one now"""

    def __post_init__(self) -> None:
        self._eos = frozenset(self.facts.eos_token_ids)
        self._sampler_table = SamplerTable(self.scheduler.limits.max_running)
        self._masks: dict[Request, RequestMasks] = {}
        self._held: list[HeldRow] = []
        self._deadlines = Deadlines()
        self._slot_owner = [-1] * self.scheduler.limits.max_running
        """arrival of the request whose parameters each slot has; not the request, which would be kept for it"""

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Raises `RequestError` (`QueueFullError` when it may be sent again later)."""
        validate_request(request, self.facts)
        if request.rid in self.scheduler:
            raise RequestError(f"a request with rid {request.rid!r} is running already", "rid")
        if self.scheduler.waiting_count >= self.max_waiting:
            raise QueueFullError(f"the queue is full ({self.max_waiting} requests are waiting)")
        if not self.prefix_cache:
            request = msgspec.structs.replace(request, use_prefix_cache=False)
        masks = self._make_masks(request)
        added = new_request(request, self._arrivals, self._eos, self.facts.context_length)
        self.scheduler.add(added)
        self._arrivals += 1
        added.submitted = self.clock()
        self._deadlines.add(added)
        if masks is not None:
            self._masks[added] = masks

    def abort(self, command: AbortRequest) -> None:
        """Stop the named requests at once; their last events come out of the next `step`."""
        if command.prefix or not command.rid:
            named = [item for item in self.scheduler.requests() if item.rid.startswith(command.rid)]
        else:
            found = self.scheduler.get(command.rid)
            named = [] if found is None else [found]
        for request in named:
            self._events.append(self._finish(request, Finish(reason="abort", message="aborted")))

    def has_work(self) -> bool:
        return bool(self._events or self.scheduler.running or self.scheduler.waiting_count)

    @property
    def isolating(self) -> bool:
        """Whether the requests of a step that raised are being run one by one."""
        return any(not suspect.is_cleared for suspect in self._suspects)

    def step(self) -> list[RequestEvent]:
        """Take one turn of the loop and return the news. May return nothing while a step is on its way.

        An exception costs the steps on their way and nothing else: everybody is recomputed, the requests of those
        steps one at a time, and only one that raises alone again is failed. `RanksLostError` ends the engine.
        """
        self.check_ranks()
        if self._deadlines:
            self._end_expired()
        events, self._events = self._events, []
        started = time.perf_counter()
        try:
            results = self.loop.turn(self._prepare)
        except StepFailure as failure:
            return events + self._lose(failure.steps, failure.cause)
        if not results and not events and not self.loop.busy:
            self._wait_for_mask()
        if results:
            self.step_times.add(time.perf_counter() - started)
        events += [event for result in results if (event := self._take(result)) is not None]
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
            expected_pages=self.scheduler.expected_pages(),
            step_counts=list(self.step_times.counts),
            step_seconds=self.step_times.total,
        )

    def flush_cache(self) -> int:
        """Empty the prefix cache; returns the number of its pages. Running requests keep what they use."""
        return self.scheduler.flush_cache()

    def close(self) -> None:
        """Let go of threads and processes; the engine cannot be used afterwards."""
        try:
            self.loop.close()
        finally:
            self.close_ranks()

    def _end_expired(self) -> None:
        """End the requests whose deadline has passed. What they sampled until now has been sent."""
        for request in self._deadlines.take_expired(self.clock()):
            message = f"the deadline of this request passed while it was {request.phase.value}"
            self._events.append(self._finish(request, Finish(reason="deadline", message=message)))

    def _make_masks(self, request: EngineRequest) -> RequestMasks | None:
        if not request.grammar:
            return None
        if self.mask_source is None:
            raise RequestError("this engine has no grammar support", "grammar")
        return RequestMasks(self.mask_source.matcher(request.grammar))

    def _prepare(self) -> PreparedStep | None:
        """The next step, noted as launched; None when there is nothing to compute."""
        late = self._ready_held()
        try:
            chunks = self._schedule()
        except Exception as error:
            raise StepFailure([self._step_of([], late)], error) from error
        if not chunks and not late:
            return None
        step = self._step_of(chunks, late)
        self.scheduler.launch(chunks)
        self.counters.steps += 1
        return step

    def _step_of(self, chunks: list[Chunk], late: list[HeldRow]) -> PreparedStep:
        for chunk in chunks:
            if self._slot_owner[chunk.request.slot] != chunk.request.arrival:
                self._load_sampler(chunk.request)
        limits, table = self.scheduler.limits, self.scheduler.page_table
        return prepare_step(chunks, table, limits.page_tokens, self._sampler_table, self._masks, late)

    def _schedule(self) -> list[Chunk]:
        while self._suspects and self._suspects[0].is_cleared:
            self._suspects.popleft()
        if not self._suspects:
            return self.scheduler.schedule()
        suspect = self._suspects[0]
        if suspect.request.unread or suspect.request.computed >= suspect.end:
            return []  # on its way
        return self.scheduler.schedule_alone(suspect.request)

    def _lose(self, steps: Sequence[PreparedStep], cause: BaseException) -> list[RequestEvent]:
        """Drop steps of which nothing was taken. Returns the last event of a request that failed alone."""
        lost: list[tuple[Chunk, int]] = []
        for step in steps:
            for chunk in step.chunks:
                chunk.request.unread -= chunk.samples
                lost.append((chunk, chunk.end))
            for held in step.late:
                held.chunk.request.unread -= 1
                held.chunk.request.held = False
                lost.append((held.chunk, held.chunk.end + 1))
        # The first step raised. A chunk that its request gave up meanwhile is not what ran alone.
        raised = [*steps[0].chunks, *(held.chunk for held in steps[0].late)]
        involved = {chunk.request for chunk in raised if chunk.preemptions == chunk.request.preemptions}
        if self._suspects and (not lost or involved == {self._suspects[0].request}):
            request = self._suspects.popleft().request
            for other in {chunk.request for chunk, _ in lost} - {request}:
                if other.phase is Phase.RUNNING:
                    self.scheduler.preempt(other)  # a row of it was sampled late in the step after
            extra = {"request_id": request.rid.rpartition("/")[0]}
            log.error("request %s fails alone", request.rid, exc_info=cause, extra=extra)
            return [self._fail(request, f"computing this request raised {type(cause).__name__}: {cause}")]
        running = list(self.scheduler.running)
        if not lost and not running:
            raise cause
        number = len({chunk.request for chunk, _ in lost}) or len(running)
        log.warning("a step of %d requests is lost; they are run one by one", number, exc_info=cause)
        self._suspects.extend(Suspect(chunk.request, end) for chunk, end in lost)
        if not lost:  # choosing a step raised, and nobody in particular is to blame
            self._suspects.extend(Suspect(request, request.settled + 1) for request in running)
        for request in reversed(running):
            self.scheduler.preempt(request)
        return []

    def _ready_held(self) -> list[HeldRow]:
        """Take the held rows whose mask has come. Those whose request lost its pages meanwhile are dropped:
        the request computes them again."""
        ready = []
        waiting = []
        for held in self._held:
            request = held.chunk.request
            if request.phase is Phase.FINISHED:
                continue
            if request.preemptions != held.chunk.preemptions:
                request.held = False
                request.unread -= 1
            elif held.row.is_ready:
                ready.append(held)
            else:
                waiting.append(held)
        self._held = waiting
        return ready

    def _wait_for_mask(self) -> None:
        """With nothing to do but to wait for grammars, wait a little."""
        masks = [held.row.mask for held in self._held if held.row.mask is not None]
        if masks:
            wait(masks, timeout=self.mask_wait_seconds, return_when=FIRST_COMPLETED)

    def _load_sampler(self, request: Request) -> None:
        self._slot_owner[request.slot] = request.arrival
        if request.queued_microseconds < 0:
            request.queued_microseconds = round(1e6 * (self.clock() - request.submitted))
        self._sampler_table.load(request)

    def _take(self, result: ChunkResult) -> RequestEvent | None:
        """Apply a chunk's result to its request; the event to send, if there is news."""
        chunk, request = result.chunk, result.chunk.request
        if request.phase is Phase.FINISHED:
            return None  # it ended after this step was launched: nothing of the step is kept
        if result.void:
            self.scheduler.undo(chunk)
            return None
        if result.held is not None:
            self._held.append(result.held)
            request.held = True
        else:
            request.unread -= chunk.samples
        if result.late:
            request.held = False
        elif chunk.start >= request.prompt_length and not result.faulty:
            self.scheduler.settle(chunk)  # a chunk of output has nothing else to tell
        elif failure := self._settle(result, chunk, request):
            return self._fail(request, failure)
        sampled = result.sampled
        if sampled is not None:
            if sampled.fault:
                return self._fail_sampling(request, sampled.fault)
            return self._append(request, sampled.token_id, sampled.logprobs)
        if result.held is None and chunk.end == request.length_limit and not request.samples:
            return self._finish(request, Finish(reason="length"))
        return None

    def _fail_sampling(self, request: Request, fault: int) -> RequestEvent:
        """End a request whose next token could not be sampled."""
        if fault != MASK_FAILED:
            return self._fail(request, FAULT_MESSAGES[fault], impossible=fault == NOTHING_LEFT)
        failure = self._masks[request].failure
        if isinstance(failure, RequestError):  # a grammar that does not compile, known with its first mask
            finish = Finish(reason="error", message=str(failure), refusal="request", field=failure.field)
            return self._finish(request, finish)
        message = f"{FAULT_MESSAGES[fault]} after {request.output_length} tokens: {failure}"
        return self._fail(request, message, impossible=isinstance(failure, GrammarError))

    def _settle(self, result: ChunkResult, chunk: Chunk, request: Request) -> str:
        """Take what a chunk stored and scored; returns why its request must fail, or nothing."""
        if result.faulty:
            return "a key or value of this request is not finite"
        self.scheduler.settle(chunk)
        if chunk.start < request.prompt_length:
            self.counters.prompt_tokens += min(chunk.end, request.prompt_length) - chunk.start
        for position, score in result.scored:
            if score is None:
                return FAULT_MESSAGES[1]
            # A chunk may be computed twice, when its request was preempted while it was on its way.
            if position == request.scored_until:
                assert request.prompt_logprobs is not None
                request.prompt_logprobs.append(score)
        return ""

    def _append(self, request: Request, token_id: int, logprobs: TokenLogprobs | None) -> RequestEvent:
        request.tokens.append(token_id)
        if self._masks and request in self._masks:
            self._masks[request].accept(token_id)
        self.counters.generated_tokens += 1
        listed = [] if logprobs is None else [logprobs]
        if finish := judge_token(request, token_id):
            self._release(request, finish)
        elif request.announced:
            return RequestEvent(
                rid=request.spec.rid,
                token_ids=[token_id],
                logprobs=listed,
                cached_tokens=request.cached_tokens,
            )
        return self._event(request, [token_id], listed)

    def _fail(self, request: Request, message: str, impossible: bool = False) -> RequestEvent:
        return self._finish(request, Finish(reason="error", message=message, impossible=impossible))

    def _finish(self, request: Request, finish: Finish) -> RequestEvent:
        self._release(request, finish)
        return self._event(request, [], [])

    def _release(self, request: Request, finish: Finish) -> None:
        request.finish = finish
        self._masks.pop(request, None)
        self.scheduler.finish(request)

    def _event(self, request: Request, token_ids: list[int], logprobs: list[TokenLogprobs]) -> RequestEvent:
        prompt_logprobs, queued = None, 0
        if not request.announced:
            request.announced, queued = True, max(0, request.queued_microseconds)
            self.counters.cached_tokens += request.cached_tokens
            # How many prompt logprobs a prefill has that was cut short follows from the chunks: none are sent.
            if request.finish is None or request.finish.reason not in ("abort", "deadline", "error"):
                prompt_logprobs = request.prompt_logprobs
        return RequestEvent(
            rid=request.spec.rid,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            cached_tokens=request.cached_tokens,
            finish=request.finish,
            queued_microseconds=queued,
        )
