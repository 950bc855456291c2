"""One simulated schedule as data: the engine's sizes and what happens to it, step by step.

A scenario is a function of its seed alone. It can be printed, and events can be left out of it (`shrink.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samebits.engine.messages import EngineRequest

Loop = Literal["simple", "overlapped, quick device", "overlapped, slow device"]
"""A quick device has run a step before the host goes on; a slow one runs it when the host wants its results."""
FaultKind = Literal["forward", "memory", "pages"]


@dataclass(frozen=True)
class Sizes:
    """What must not change a bit."""

    page_tokens: int
    pages: int
    step_tokens: int
    max_running: int
    max_waiting: int
    assumed_tokens: int | None = None
    """length of an answer before any has ended; None: whoever fits at the moment is admitted"""

    @property
    def kv_tokens(self) -> int:
        return self.page_tokens * self.pages


@dataclass(frozen=True)
class Submit:
    """A request arrives. With `follows`, it is the next turn of a chat: if that request has ended by then, its
    prompt and output go before this prompt. With `patience`, its deadline is so many steps later."""

    request: EngineRequest
    follows: str = ""
    patience: int = 0


@dataclass(frozen=True)
class Abort:
    """A request, or all whose rid starts with it (a client that hangs up), is aborted."""

    rid: str
    prefix: bool = False


@dataclass(frozen=True)
class Flush:
    """The prefix cache is flushed."""


@dataclass(frozen=True)
class Restart:
    """The engine dies with all that it holds; a new one gets every unfinished request again, from the start."""


@dataclass(frozen=True)
class Fault:
    """The next step in which it can strike raises: in the forward, for lack of memory, for lack of a KV page."""

    kind: FaultKind


Event = Submit | Abort | Flush | Restart | Fault


@dataclass(frozen=True)
class Timed:
    """An event, and the step before which it happens."""

    step: int
    event: Event


@dataclass(frozen=True)
class Scenario:
    """Everything about one simulated schedule."""

    seed: int
    model: str
    """`fake` or `tiny`"""
    loop: Loop
    sizes: Sizes
    solo_sizes: Sizes
    """of the engines that run each request alone, for comparison"""
    events: tuple[Timed, ...]

    def lines(self) -> list[str]:
        """The scenario for people to read."""
        head = [
            f"seed {self.seed}, model {self.model}, {self.loop} loop",
            f"  schedule {self.sizes}",
            f"  solo     {self.solo_sizes}",
        ]
        return head + [f"  before step {timed.step}: {_described(timed.event)}" for timed in self.events]


def _described(event: Event) -> str:
    if not isinstance(event, Submit):
        return str(event)
    request = event.request
    defaults = type(request.sampling)()
    sampling = {
        name: value
        for name in request.sampling.__struct_fields__
        if (value := getattr(request.sampling, name)) != getattr(defaults, name)
    }
    prompt = _shortened(request.prompt_ids)
    details = [f"prompt of {len(request.prompt_ids)} tokens {prompt}", f"sampling {sampling}"]
    details += [f"{request.logprobs}"] if request.logprobs != type(request.logprobs)() else []
    details += [f"priority {request.priority}"] if request.priority else []
    details += ["without prefix cache"] if not request.use_prefix_cache else []
    details += [f"grammar {request.grammar}"] if request.grammar else []
    details += [f"next turn of {event.follows}"] if event.follows else []
    details += [f"deadline after {event.patience} steps"] if event.patience else []
    return f"Submit {request.rid}: " + ", ".join(details)


def _shortened(ids: Sequence[int], most: int = 24) -> str:
    shown = ", ".join(str(token) for token in ids[:most])
    return f"[{shown}{', ...' if len(ids) > most else ''}]"
