"""Engines on the GPU for the benchmarks: requests that all decode at once, and the device's time beside the host's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
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


@dataclass
class TimedRunner:
    """A device runner that marks the beginning and the end of every step in the device's queue."""

    inner: DeviceRunner
    marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def launch(self, step: PreparedStep, before: Mapping[str, int]) -> Launched:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        launched = self.inner.launch(step, before)
        end.record()
        self.marks.append((begin, end))
        return launched

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
    fresh: int = 0
    """prompts that were made for prefills alone"""

    def step(self) -> list[RequestEvent]:
        return self.engine.step()

    def decode_together(self, count: int, prompt_tokens: int, temperature: float = 1.0) -> None:
        """Submit `count` requests with prompts of their own and compute all prefills."""
        for number in range(count):
            self.engine.submit(long_request(number, prompt_tokens, self.engine.facts.vocabulary, temperature))
        while self.engine.scheduler.waiting_count or any(
            request.uncomputed > 1 for request in self.engine.scheduler.running
        ):
            self.engine.step()

    def prefill_seconds(self, count: int, prompt_tokens: int) -> float:
        """What `count` new prompts take from their submission to their first tokens, nothing else running."""
        started = time.perf_counter()
        for number in range(count):
            self.fresh += 1
            one = long_request(100_000 + self.fresh, prompt_tokens, self.engine.facts.vocabulary, 1.0)
            sampling = msgspec.structs.replace(one.sampling, max_new_tokens=1)
            self.engine.submit(msgspec.structs.replace(one, rid=f"prefill {number}", sampling=sampling))
        while self.engine.has_work():
            self.engine.step()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    def keep(self, count: int) -> None:
        """Abort all running requests but `count`."""
        for request in self.engine.scheduler.running[count:]:
            self.engine.abort(AbortRequest(rid=request.rid))
        for _ in range(3):
            self.engine.step()

    def timed_steps(self, steps: int) -> dict[str, float]:
        """Milliseconds a step: on the clock, inside the device's steps, and between them."""
        self.runner.busy_and_idle()
        started = time.perf_counter()
        for _ in range(steps):
            self.engine.step()
        torch.cuda.synchronize()
        wall = 1e3 * (time.perf_counter() - started) / steps
        busy, idle = self.runner.busy_and_idle()
        return {"wall": wall, "busy": busy / steps, "idle": idle / max(steps - 1, 1)}

    def kernel_milliseconds(self, steps: int) -> dict[str, float]:
        """Milliseconds a step inside each kernel of this process's device, by the kernel's name."""
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as traced:
            for _ in range(steps):
                self.engine.step()
            torch.cuda.synchronize()
        self.runner.busy_and_idle()
        return {
            entry.key: entry.self_device_time_total / 1e3 / steps
            for entry in traced.key_averages()
            if entry.self_device_time_total
        }

    def context(self) -> int:
        """Tokens of the first running request."""
        return len(self.engine.scheduler.running[0].tokens)

    def close(self) -> None:
        self.engine.close()


def long_request(number: int, prompt_tokens: int, vocabulary: int, temperature: float) -> EngineRequest:
    """A request that goes on for as long as it is let, with a prompt that shares nothing with the others'."""
    prompt = [(7919 * (number + 1) + 104729 * place) % vocabulary for place in range(prompt_tokens)]
    sampling = ResolvedSampling(temperature=temperature, max_new_tokens=1 << 20, ignore_eos=True, seed=number)
    return EngineRequest(rid=f"request {number}", prompt_ids=prompt, sampling=sampling)


def open_engine(model: ModelConfig, engine: EngineConfig, say: Any) -> BenchEngine:
    """Build an engine on the GPU. Raises `ConfigError` on a machine without one."""
    if not torch.cuda.is_available():
        raise ConfigError("this benchmark measures a GPU, and torch finds none here")
    seen: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in seen:
            seen.append(stage)
            say(f"  {stage}")

    started = time.perf_counter()
    built = build_engine(model, engine, progress)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    assert isinstance(built.loop, DeviceLoop) and isinstance(built.loop.runner, DeviceRunner)
    timed = TimedRunner(built.loop.runner)
    built.loop.runner = timed
    return BenchEngine(built, timed, seconds)


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
    """The middle value of one figure over rounds."""
    values = sorted(one[key] for one in rounds)
    return values[len(values) // 2]
