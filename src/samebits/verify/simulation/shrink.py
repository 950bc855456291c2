"""Make a failing scenario smaller, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from samebits.verify.simulation.scenario import Scenario, Submit, Timed


def shrink(scenario: Scenario, fails: Callable[[Scenario], bool], most_runs: int = 300) -> Scenario:
    """Leave out events (halves first, then quarters, at last single ones), then shorten requests, while `fails`
    holds. At most `most_runs` scenarios are tried."""
    runs = 0

    def still_fails(candidate: Scenario) -> bool:
        nonlocal runs
        runs += 1
        return runs <= most_runs and fails(candidate)

    size = max(1, len(scenario.events) // 2)
    while True:
        smaller = _without_some(scenario, size, still_fails)
        if smaller is scenario and size == 1:
            break
        size = max(1, size // 2) if smaller is scenario else min(size, max(1, len(smaller.events) // 2))
        scenario = smaller
    return _shortened(scenario, still_fails)


def _without_some(scenario: Scenario, size: int, fails: Callable[[Scenario], bool]) -> Scenario:
    """Without as many runs of `size` events as possible; the same object when none can go."""
    at = 0
    while at < len(scenario.events):
        candidate = replace(scenario, events=scenario.events[:at] + scenario.events[at + size :])
        if candidate.events and fails(candidate):
            scenario = candidate
        else:
            at += size
    return scenario


def _shortened(scenario: Scenario, fails: Callable[[Scenario], bool]) -> Scenario:
    for index, timed in enumerate(scenario.events):
        if isinstance(timed.event, Submit):
            for shorter in _shorter(timed.event):
                candidate = _with_event(scenario, index, Timed(timed.step, shorter))
                if fails(candidate):
                    scenario = candidate
                    break
    return scenario


def _shorter(submit: Submit) -> Sequence[Submit]:
    """The same request with the front of its prompt only, the shortest first."""
    request = submit.request
    lengths = [len(request.prompt_ids) * part // 8 for part in range(1, 8)]
    return [
        replace(submit, request=msgspec.structs.replace(request, prompt_ids=request.prompt_ids[:length]))
        for length in dict.fromkeys(lengths)
        if length > max(0, request.logprobs.prompt_start)
    ]


def _with_event(scenario: Scenario, index: int, timed: Timed) -> Scenario:
    return replace(scenario, events=(*scenario.events[:index], timed, *scenario.events[index + 1 :]))
