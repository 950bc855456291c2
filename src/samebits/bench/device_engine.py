"""Engines on the GPU for the benchmarks: requests that all decode at once, and the device's time beside the host's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from typing import Any

import msgspec
import torch
from torch.profiler import ProfilerActivity, profile

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.build import build_engine
from samebits.engine.device.launched import Launched
from samebits.engine.device.loop import DeviceLoop
from samebits.engine.device.runner import DeviceRunner
from samebits.engine.engine import Engine
from samebits.engine.messages import AbortRequest, EngineRequest, RequestEvent
from samebits.engine.step import PreparedStep
from samebits.errors import ConfigError
from samebits.sampling_params import ResolvedSampling

IDLE_STEPS = 4
"""that admit nobody, after which nobody will be admitted"""
ABORT_STEPS = 3
"""after which requests that were aborted are gone"""


@dataclass
class TimedRunner:
    """A device runner that marks the beginning and the end of every step in the device's queue."""

    inner: DeviceRunner
    marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    queueing: float = 0.0
    """seconds of the host in `launch`, all in all"""

    def launch(self, step: PreparedStep, before: Mapping[str, int]) -> Launched:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        started = time.perf_counter()
        launched = self.inner.launch(step, before)
        self.queueing += time.perf_counter() - started
        end.record()
        self.marks.append((begin, end))
        return launched

    def close(self) -> None:
        self.inner.close()

    def busy_and_idle(self) -> tuple[float, float]:
        """Milliseconds inside steps and between them, of the steps since the last call."""
        torch.cuda.synchronize()
        marks, self.marks = self.marks, []
        busy = sum(begin.elapsed_time(end) for begin, end in marks)
        idle = sum(one[1].elapsed_time(other[0]) for one, other in pairwise(marks))
        return busy, idle


@dataclass
class BenchEngine:
    """An engine on the GPU with a timed runner."""

    engine: Engine
    runner: TimedRunner
    start_seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    """seconds of the start from each stage's beginning to the next one's, by the stage's name"""
    fresh: int = 0
    """prompts that were made for prefills alone"""
    joined: int = 0
    """requests that were made to decode"""

    def step(self) -> list[RequestEvent]:
        return self.engine.step()

    def decode_together(self, count: int, prompt_tokens: int, temperature: float = 1.0) -> None:
        """Submit `count` requests more with prompts of their own and compute all prefills. Raises `ConfigError` where
        the scheduler keeps some of them waiting: nobody here ends, so they would wait for ever."""
        for number in range(self.joined, self.joined + count):
            self.engine.submit(long_request(number, prompt_tokens, self.engine.facts.vocabulary, temperature))
        self.joined += count
        scheduler, idle = self.engine.scheduler, 0
        while (prompts := self._prompts_left()) or scheduler.waiting_count:
            waiting = scheduler.waiting_count
            self.engine.step()
            # Without prompts to compute the step was for whoever waits, and none of them was let in.
            idle = idle + 1 if not prompts and scheduler.waiting_count >= waiting else 0
            if idle == IDLE_STEPS:
                raise ConfigError(
                    f"{waiting} of {self.joined} requests would never run with the others: {scheduler.pool.used} of "
                    f"{scheduler.pool.total} KV pages are in use; see --kv-memory-mib, --max-running, --step-tokens "
                    "and --assumed-answer-tokens 0"
                )

    def _prompts_left(self) -> bool:
        """Whether a running request has more to compute than the token that it sampled last."""
        return any(request.uncomputed > 1 for request in self.engine.scheduler.running)

    def prefill(self, count: int, prompt_tokens: int, step_tokens: int) -> dict[str, float]:
        """What `count` new prompts take, nothing else running, in steps of at most `step_tokens`: `seconds` from their
        submission to their first tokens, the `steps`, and milliseconds a step on the device (`busy`) and of the host
        to queue it (`queueing`)."""
        scheduler, limits = self.engine.scheduler, self.engine.scheduler.limits
        self.runner.busy_and_idle()
        queued = self.runner.queueing
        started = time.perf_counter()
        scheduler.limits = replace(limits, step_tokens=min(step_tokens, limits.step_tokens))
        for number in range(count):
            self.fresh += 1
            one = long_request(100_000 + self.fresh, prompt_tokens, self.engine.facts.vocabulary, 1.0)
            sampling = msgspec.structs.replace(one.sampling, max_new_tokens=1)
            self.engine.submit(msgspec.structs.replace(one, rid=f"prefill {number}", sampling=sampling))
        while self.engine.has_work():
            self.engine.step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        scheduler.limits = limits
        steps = max(len(self.runner.marks), 1)
        busy, _ = self.runner.busy_and_idle()
        queueing = 1e3 * (self.runner.queueing - queued) / steps
        return {"seconds": seconds, "steps": steps, "busy": busy / steps, "queueing": queueing}

    def prefill_kernels(self, count: int, prompt_tokens: int, step_tokens: int) -> dict[str, float]:
        """Milliseconds a step of such prompts inside each kernel of this process's device, by the kernel's name."""

        def work() -> int:
            return int(self.prefill(count, prompt_tokens, step_tokens)["steps"])

        steps, found = traced(work)
        return {name: time / steps for name, time in found.items()}

    def keep(self, count: int) -> None:
        """Abort all running requests but `count`."""
        for request in self.engine.scheduler.running[count:]:
            self.engine.abort(AbortRequest(rid=request.rid))
        for _ in range(ABORT_STEPS):
            self.engine.step()

    def timed_steps(self, steps: int) -> dict[str, float]:
        """Milliseconds a step: on the clock, inside the device's steps, and between them. Raises `ConfigError` where
        not all requests decoded in all of them."""
        self.runner.busy_and_idle()
        scheduler = self.engine.scheduler
        running, preemptions = len(scheduler.running), scheduler.preemptions
        started = time.perf_counter()
        for _ in range(steps):
            self.engine.step()
        torch.cuda.synchronize()
        wall = 1e3 * (time.perf_counter() - started) / steps
        if len(scheduler.running) < running or scheduler.preemptions > preemptions:
            raise ConfigError(
                f"{running} requests were to decode in every step that is timed, and some had no room for their keys "
                "and values, or came to the end of the context: see --kv-memory-mib, --steps, --repeats and "
                "--context-length"
            )
        busy, idle = self.runner.busy_and_idle()
        return {"wall": wall, "busy": busy / steps, "idle": idle / max(steps - 1, 1)}

    def kernel_milliseconds(self, steps: int) -> dict[str, float]:
        """Milliseconds a step inside each kernel of this process's device, by the kernel's name."""

        def work() -> int:
            for _ in range(steps):
                self.engine.step()
            return steps

        _, found = traced(work)
        self.runner.busy_and_idle()
        return {name: time / steps for name, time in found.items()}

    def context(self) -> int:
        """Tokens of a running request, on average."""
        running = self.engine.scheduler.running
        return sum(len(request.tokens) for request in running) // len(running)

    def close(self) -> None:
        self.engine.close()


def traced(work: Callable[[], int]) -> tuple[int, dict[str, float]]:
    """What `work` returns, and the milliseconds that this process's device spent in each kernel meanwhile."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as tracing:
        returned = work()
        torch.cuda.synchronize()
    return returned, {
        entry.key: entry.self_device_time_total / 1e3
        for entry in tracing.key_averages()
        if entry.self_device_time_total
    }


def long_request(number: int, prompt_tokens: int, vocabulary: int, temperature: float) -> EngineRequest:
    """A request that goes on for as long as it is let, with a prompt that shares nothing with the others'."""
    prompt = [(7919 * (number + 1) + 104729 * place) % vocabulary for place in range(prompt_tokens)]
    sampling = ResolvedSampling(temperature=temperature, max_new_tokens=1 << 20, ignore_eos=True, seed=number)
    return EngineRequest(rid=f"request {number}", prompt_ids=prompt, sampling=sampling)


def open_engine(model: ModelConfig, engine: EngineConfig, say: Any) -> BenchEngine:
    """Build an engine on the GPU. Raises `ConfigError` on a machine without one."""
    if not torch.cuda.is_available():
        raise ConfigError("this benchmark measures a GPU, and torch finds none here")
    begun: list[tuple[str, float]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if not begun or begun[-1][0] != stage:
            begun.append((stage, time.perf_counter()))
            say(f"  {stage}")

    started = time.perf_counter()
    built = build_engine(model, engine, progress)
    torch.cuda.synchronize()
    ended = time.perf_counter()
    assert isinstance(built.loop, DeviceLoop) and isinstance(built.loop.runner, DeviceRunner)
    timed = TimedRunner(built.loop.runner)
    built.loop.runner = timed
    return BenchEngine(built, timed, ended - started, stage_seconds(begun, started, ended))


def stage_seconds(begun: Sequence[tuple[str, float]], started: float, ended: float) -> dict[str, float]:
    """Seconds of each stage, and of what came before the first one, from the moments in which they began."""
    found: dict[str, float] = {}
    moments = [("before any stage", started), *begun, ("", ended)]
    for (name, begin), (_, end) in pairwise(moments):
        found[name] = round(found.get(name, 0.0) + end - begin, 2)
    return found


def gpu_facts() -> dict[str, Any]:
    """The card, as the driver names it."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }


def median_of(rounds: Sequence[dict[str, float]], key: str) -> float:
    """The median of one figure over rounds."""
    return median(one[key] for one in rounds)
