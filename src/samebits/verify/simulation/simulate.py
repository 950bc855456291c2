"""Run a scenario, check the engine after every step, and compare every request with its run alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import msgspec

from samebits.engine.engine import Engine
from samebits.engine.loops import Loop as EngineLoop
from samebits.engine.loops import OverlappedLoop, SimpleLoop
from samebits.engine.messages import AbortRequest, EngineFacts, EngineRequest, Finish
from samebits.engine.runner import Runner
from samebits.engine.validate import QueueFullError
from samebits.sampling_params import SamplingDefaults
from samebits.schedule.foresight import Foresight
from samebits.schedule.scheduler import Scheduler, SchedulerLimits
from samebits.verify.simulation.devices import QuickDevice, SlowDevice
from samebits.verify.simulation.generate import Recipe
from samebits.verify.simulation.grammar import SimulatedGrammars
from samebits.verify.simulation.ledger import ScheduleError, Stream, compare
from samebits.verify.simulation.sabotage import FaultPlan, SabotagedPool, SabotagedRunner
from samebits.verify.simulation.scenario import (
    Abort,
    Event,
    Fault,
    FaultKind,
    Flush,
    Loop,
    Restart,
    Scenario,
    Sizes,
    Submit,
)

REMEMBERED_ANSWERS = 4
"""few, so that a short schedule changes what is expected of its requests"""


@dataclass(frozen=True)
class SimulatedModel:
    """A model that scenarios can run on."""

    recipe: Recipe
    context_length: int
    eos_token_ids: tuple[int, ...]
    make_runner: Callable[[int, int], Runner]
    """from (pages, tokens in a page) to a runner with fresh KV storage"""


LOOPS: dict[Loop, Callable[[Runner], EngineLoop]] = {
    "simple": SimpleLoop,
    "overlapped, quick device": lambda runner: OverlappedLoop(runner, QuickDevice()),
    "overlapped, slow device": lambda runner: OverlappedLoop(runner, SlowDevice()),
}


@dataclass
class Counts:
    """What happened in a schedule, so that a person can see that the simulator does look."""

    steps: int = 0
    requests: int = 0
    tokens: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    lost_steps: int = 0
    aborts: int = 0
    restarts: int = 0
    expired: int = 0

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def make_engine(
    model: SimulatedModel,
    sizes: Sizes,
    plan: FaultPlan,
    loop: Loop = "simple",
    grammars: SimulatedGrammars | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Engine:
    """A fresh engine of these sizes whose faults `plan` controls, whose masks come at once or from `grammars`, and
    whose deadlines are read from `clock`."""
    grammars = grammars or SimulatedGrammars(model.recipe.vocabulary)
    facts = EngineFacts(
        model=model.recipe.model,
        family="simulated",
        vocabulary=model.recipe.vocabulary,
        context_length=model.context_length,
        kv_tokens=sizes.kv_tokens,
        eos_token_ids=list(model.eos_token_ids),
        sampling_defaults=SamplingDefaults(),
        default_seed=None,
        profile="simulated",
        promises_bits=True,
        fingerprint="",
        plan={},
    )
    limits = SchedulerLimits(
        step_tokens=sizes.step_tokens,
        max_running=sizes.max_running,
        page_tokens=sizes.page_tokens,
        pages_per_request=sizes.pages,
    )
    runner = SabotagedRunner(
        inner=model.make_runner(sizes.pages, sizes.page_tokens),
        plan=plan,
        breaking=model.recipe.breaking_token,
        unsound=model.recipe.unsound_token,
    )
    assumed = sizes.assumed_tokens
    # At no price for a step, nobody starts who is expected to be preempted, few as there are.
    foresight = None if assumed is None else Foresight(assumed, REMEMBERED_ANSWERS, step_price=0)
    scheduler = Scheduler(limits, SabotagedPool(sizes.pages, plan), foresight)
    return Engine(
        facts,
        runner,
        scheduler,
        LOOPS[loop](runner),
        sizes.max_waiting,
        grammars,
        mask_wait_seconds=0.0,
        clock=clock,
    )


@dataclass
class Simulation:
    """One scenario in the middle of its run."""

    scenario: Scenario
    model: SimulatedModel
    counts: Counts = field(default_factory=Counts)
    streams: dict[str, Stream] = field(default_factory=dict)
    step: int = 0
    _unsent: list[EngineRequest] = field(default_factory=list)
    """refused for a full queue; their clients try again"""
    _faults: list[FaultKind] = field(default_factory=list)
    """still to strike"""

    def __post_init__(self) -> None:
        self._delays = Random(self.scenario.seed)
        self._start_engine()

    def run(self) -> None:
        """Run to the end. Raises `ScheduleError` or AssertionError where something is wrong."""
        events = list(self.scenario.events)
        limit = self._step_limit()
        while events or self._unsent or self._engine.has_work():
            while events and events[0].step <= self.step:
                self._happen(events.pop(0).event)
            self._send_again()
            self._one_step()
            self.step += 1
            if self.counts.steps > limit:
                raise ScheduleError(f"no end after {limit} steps: somebody starves")
        self._check_rest()

    def _start_engine(self) -> None:
        scenario = self.scenario
        self._plan = FaultPlan()
        self._grammars = SimulatedGrammars(self.model.recipe.vocabulary, self._delays)
        self._engine = make_engine(
            self.model, scenario.sizes, self._plan, scenario.loop, self._grammars, clock=lambda: self.step
        )

    def _happen(self, event: Event) -> None:
        if isinstance(event, Submit):
            self._unsent.append(self._resolved(event))
            self.counts.requests += 1
        elif isinstance(event, Abort):
            self._abort(event)
        elif isinstance(event, Flush):
            self._engine.flush_cache()
        elif isinstance(event, Fault):
            self._faults.append(event.kind)
        elif isinstance(event, Restart):
            self._restart()

    def _resolved(self, event: Submit) -> EngineRequest:
        """The request with its deadline, and with the text so far of the chat that it goes on."""
        request = event.request
        if event.patience:
            request = msgspec.structs.replace(request, deadline=self.step + event.patience)
        before = self.streams.get(event.follows)
        if before is None or before.finish is None or before.finish.reason not in ("stop", "length"):
            return request
        text = before.request.prompt_ids + before.token_ids
        return msgspec.structs.replace(request, prompt_ids=text + request.prompt_ids)

    def _send_again(self) -> None:
        unsent, self._unsent = self._unsent, []
        for request in unsent:
            try:
                self._engine.submit(request)
            except QueueFullError:
                self._unsent.append(request)
            else:
                self.streams.setdefault(request.rid, Stream(request))

    def _abort(self, event: Abort) -> None:
        for request in list(self._unsent):
            if request.rid.startswith(event.rid) if event.prefix else request.rid == event.rid:
                self._unsent.remove(request)
                if request.rid in self.streams:  # an engine had it before a restart
                    self.streams[request.rid].finish = Finish(reason="abort")
        self._engine.abort(AbortRequest(rid=event.rid, prefix=event.prefix))
        self.counts.aborts += 1

    def _restart(self) -> None:
        self._start_engine()
        for rid, stream in self.streams.items():
            if stream.finish is None:
                self.streams[rid] = stream.restarted()
                if all(request.rid != rid for request in self._unsent):
                    self._unsent.append(stream.request)
        self.counts.restarts += 1

    def _one_step(self) -> None:
        # A fault in a step that isolates would fail a request that is innocent.
        if self._faults and not self._engine.isolating:
            self._plan.armed = self._faults[0]
        isolating = self._engine.isolating
        self._grammars.next_turn()
        events = self._engine.step()
        if self._faults and self._plan.armed is None and not isolating:
            self._faults.pop(0)
            self.counts.lost_steps += 1
        self._plan.armed = None
        self.counts.steps += 1
        for event in events:
            if event.rid not in self.streams:
                raise ScheduleError(f"news of {event.rid}, which nobody sent")
            self.streams[event.rid].take(event)
            self.counts.tokens += len(event.token_ids)
            if event.finish is not None:
                self.counts.cached_tokens += event.cached_tokens
                self._check_deadline(event.rid, event.finish)
        self._engine.scheduler.check()
        self._check_streams()

    def _check_deadline(self, rid: str, finish: Finish) -> None:
        """Nobody is ended before its deadline."""
        if finish.reason != "deadline":
            return
        self.counts.expired += 1
        deadline = self.streams[rid].request.deadline
        if deadline is None or deadline > self.step:
            raise ScheduleError(f"{rid}: ended in step {self.step} for a deadline at {deadline}")

    def _check_streams(self) -> None:
        """Every token that was accepted was sent, once and in order, and nobody outlives its deadline."""
        scheduler = self._engine.scheduler
        for request in scheduler.requests():
            if request.spec.deadline is not None and request.spec.deadline <= self.step:
                raise ScheduleError(f"{request.rid}: alive in step {self.step}, past its deadline")
            sent = self.streams[request.rid].token_ids
            if sent != request.tokens[request.prompt_length :]:
                raise ScheduleError(f"{request.rid}: sent {sent}, but its output is {request.tokens}")
        waiting = {request.rid for request in self._unsent}
        open_streams = {rid for rid, stream in self.streams.items() if stream.finish is None} - waiting
        known = {request.rid for request in scheduler.requests()}
        # An abort's last event comes out of the next step.
        if not known <= open_streams:
            raise ScheduleError(f"finished for their clients but not for the engine: {known - open_streams}")
        if open_streams != known:
            raise ScheduleError(f"forgotten by the engine: {open_streams - known}")

    def _check_rest(self) -> None:
        """Nothing is left of a schedule that ended but the prefix cache, and nothing of that after a flush."""
        scheduler = self._engine.scheduler
        self.counts.preemptions += scheduler.preemptions
        unfinished = [rid for rid, stream in self.streams.items() if stream.finish is None]
        if unfinished:
            raise ScheduleError(f"never finished: {unfinished}")
        if scheduler.pool.used != scheduler.cache.pages:
            raise ScheduleError(f"{scheduler.pool.used - scheduler.cache.pages} pages leaked")
        scheduler.flush_cache()
        if scheduler.pool.used:
            raise ScheduleError(f"{scheduler.pool.used} pages leaked from the prefix cache")

    def _step_limit(self) -> int:
        """Steps that no fair schedule needs: every token alone, everybody recomputed at every token."""
        last = max((timed.step for timed in self.scenario.events), default=0)
        tokens = sum(
            len(timed.event.request.prompt_ids) + timed.event.request.sampling.max_new_tokens
            for timed in self.scenario.events
            if isinstance(timed.event, Submit)
        )
        return 2 * last + 40 * tokens + 1000


def run_alone(model: SimulatedModel, sizes: Sizes, request: EngineRequest) -> Stream:
    """What the request's client receives from a fresh engine that serves nobody else."""
    engine = make_engine(model, sizes, FaultPlan())
    engine.submit(request)
    stream = Stream(request)
    while engine.has_work():
        for event in engine.step():
            stream.take(event)
    return stream


def run_scenario(scenario: Scenario, model: SimulatedModel) -> Counts:
    """Run `scenario` and compare. Raises AssertionError (or whatever the engine raised) when it fails."""
    simulation = Simulation(scenario, model)
    simulation.run()
    alone: dict[bytes, Stream] = {}
    for stream in simulation.streams.values():
        request = msgspec.structs.replace(stream.request, priority=0, use_prefix_cache=True, deadline=None)
        key = msgspec.msgpack.encode(msgspec.structs.replace(request, rid=""))
        if key not in alone:
            alone[key] = run_alone(model, scenario.solo_sizes, request)
        compare(stream, alone[key])
    return simulation.counts
