"""A request inside the engine: a state machine over its token ids.

    WAITING --admit--> RUNNING --finish--> FINISHED
       ^                  |
       +-----preempt------+          (abort and failure lead to FINISHED from anywhere)

`tokens` holds the prompt and every accepted output token; `unread` counts tokens beyond them that a launched
step samples and the host has not read yet. `computed` counts the tokens whose keys and values lie in the
request's pages once every launched step has run; `settled` those of steps whose results were read and sound.
A preempted request forgets its pages, `computed` and `settled`, and nothing else: what it sampled stays, so
recomputing it is one more prefill.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from samebits.cache.radix import Node, token_data
from samebits.schedule.messages import EngineRequest, Finish, TokenLogprobs


class Phase(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """One sample being generated. Mutable; owned by the scheduler."""

    spec: EngineRequest
    arrival: int
    """order of submission; smaller is older"""
    prompt_length: int
    order: tuple[int, int]
    """sort key of service: higher priority first, then older first"""
    stop_ids: frozenset[int]
    """token ids that end it, end-of-sequence tokens included unless ignored"""
    length_limit: int
    """most tokens, prompt and output"""
    prompt_data: bytes
    """the prompt as `token_data`"""
    samples_plainly: bool
    """whether no row of it reads the tokens so far or excludes stop tokens"""
    tokens: list[int] = field(default_factory=list)
    unread: int = 0
    held: bool = False
    """whether its next token waits for a grammar mask, its logits being computed already"""
    computed: int = 0
    settled: int = 0
    pages: list[int] = field(default_factory=list)
    slot: int = -1
    """row of the scheduler's page table; -1 unless RUNNING"""
    node: Node | None = None
    """how far the request's pages lie in the prefix cache; None: it does not use the cache"""
    cache_depth: int = 0
    """pages from the start that lie in the prefix cache"""
    page_keys: list[bytes] = field(default_factory=list)
    """what the prefix cache calls its first pages; kept, for tokens never change"""
    page_chain: list[int] = field(default_factory=list)
    """hash of each of these keys and all before it"""
    phase: Phase = Phase.WAITING
    finish: Finish | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    cached_tokens: int = 0
    """prompt tokens found in the prefix cache when it was first admitted"""
    preemptions: int = 0
    announced: bool = False
    """whether an event has gone out already"""
    submitted: float = 0.0
    """reading of the engine's clock"""
    queued_microseconds: int = -1
    """from the submission to the first step; -1 before that"""

    @property
    def rid(self) -> str:
        return self.spec.rid

    @property
    def output_length(self) -> int:
        return len(self.tokens) - len(self.spec.prompt_ids)

    @property
    def length(self) -> int:
        """Tokens, the unread ones included."""
        return len(self.tokens) + self.unread

    @property
    def uncomputed(self) -> int:
        """Tokens that a forward still has to process; 1 in the middle of decoding."""
        return self.length - self.computed

    @property
    def samples(self) -> bool:
        """Whether a finished prefill is followed by sampling (max_new_tokens 0 only scores)."""
        return self.length_limit > self.prompt_length

    @property
    def reusable_tokens(self) -> int:
        """Tokens whose keys and values may come from elsewhere: the last one is needed for its logits, and
        prompt logprobs are computed afresh from the first position that still wants one."""
        if self.spec.logprobs.prompt_start < 0:
            return len(self.tokens) - 1
        return (self.scored_until if self.scores_missing else len(self.tokens)) - 1

    @property
    def scores_missing(self) -> bool:
        """Whether prompt logprobs that are wanted have not been computed yet."""
        return self.scored_until < self.prompt_length

    @property
    def scored_until(self) -> int:
        """Next prompt position whose logprob is wanted; the prompt's length when there is none."""
        start = self.spec.logprobs.prompt_start
        if start < 0:
            return self.prompt_length
        done = len(self.prompt_logprobs) if self.prompt_logprobs is not None else 0
        return min(start + done, self.prompt_length)


def new_request(
    spec: EngineRequest, arrival: int, eos_token_ids: frozenset[int], context_length: int
) -> Request:
    """Make the state machine of a validated request."""
    sampling = spec.sampling
    stop_ids = frozenset(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stop_ids |= eos_token_ids
    request = Request(
        spec=spec,
        arrival=arrival,
        prompt_length=len(spec.prompt_ids),
        order=(-spec.priority, arrival),
        stop_ids=stop_ids,
        length_limit=min(len(spec.prompt_ids) + sampling.max_new_tokens, context_length),
        prompt_data=token_data(spec.prompt_ids),
        samples_plainly=not (sampling.needs_history or sampling.min_new_tokens),
        tokens=list(spec.prompt_ids),
    )
    if spec.logprobs.prompt_start >= 0:
        request.prompt_logprobs = []
        if spec.logprobs.prompt_start == 0:
            request.prompt_logprobs.append(TokenLogprobs(spec.prompt_ids[0], None))
    return request


def judge_token(request: Request, token_id: int) -> Finish | None:
    """Whether `token_id`, just appended, ends the request (trap 13: tokens are judged one by one)."""
    if token_id in request.stop_ids:
        return Finish(reason="stop", matched_token=token_id)
    if len(request.tokens) >= request.length_limit:
        return Finish(reason="length")
    return None
