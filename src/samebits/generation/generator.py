"""From what a user asks to what a user gets: prompts and parameters to samples, events to text.

Every front end (the offline API and each HTTP route) goes through here, so that seeds, sample indices, stop
strings and warnings mean the same thing everywhere.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec

from samebits.engine.async_engine import AsyncEngine
from samebits.engine.logs import request_id
from samebits.engine.messages import EngineFacts, EngineRequest, RequestEvent
from samebits.engine.validate import validate_request
from samebits.errors import EngineError, RequestError
from samebits.generation.grammars import GrammarChecker, grammar_of_params
from samebits.generation.metrics import RequestMetrics
from samebits.generation.samples import (
    Collector,
    FinishReason,
    GenerationRequest,
    Sample,
    SampleOutput,
)
from samebits.sampling_params import DEFAULT_SEED, SamplingParams
from samebits.text.output import OutputText, TextOptions
from samebits.text.tokenizer import LONG_TEXT, Tokenizer

LARGEST_SAMPLE_INDEX = (1 << 31) - 1
RANDOM_SEED_BITS = 53
"""so that a drawn seed survives clients whose numbers are doubles"""

log = logging.getLogger(__name__)


class Generator:
    """Runs generation requests on an engine. Belongs to the engine's event loop."""

    def __init__(
        self,
        engine: AsyncEngine,
        tokenizer: Tokenizer | None,
        metrics: RequestMetrics | None = None,
        default_deadline_seconds: float = 0.0,
    ) -> None:
        """`default_deadline_seconds` is of requests that name none; 0: they have none."""
        self._default_deadline_seconds = default_deadline_seconds or None
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics or RequestMetrics()
        self._grammars: GrammarChecker | None = None
        self._running: dict[str, set[str]] = defaultdict(set)
        """engine ids by the caller's ids"""

    @property
    def facts(self) -> EngineFacts:
        return self._engine.facts

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def prepare(self, requests: Sequence[GenerationRequest], group: str = "") -> list[Sample]:
        """Every sample of a batch, in order: tokenized, checked, blanks filled in, `n` unfolded.

        The samples of one prompt stand together. Raises `RequestError` naming the field. Blocks while a grammar
        compiles.
        """
        arrived = time.monotonic()
        group = group or uuid.uuid4().hex
        samples: list[Sample] = []
        for index, request in enumerate(requests):
            samples.extend(self._samples_of(request, index, group, self._deadline(request, arrived)))
        rids: set[str] = set()
        for sample in samples:
            if sample.rid in rids or sample.rid in self._running:
                raise RequestError(f"rid {sample.rid!r} is in use", "rid")
            rids.add(sample.rid)
        return _warn_of_duplicates(samples)

    async def prepare_beside(self, requests: Sequence[GenerationRequest], group: str = "") -> list[Sample]:
        """`prepare`, in a thread where it would hold up the event loop."""
        size = sum(len(request.prompt) for request in requests if isinstance(request.prompt, str))
        if size > LONG_TEXT or any(request.is_structured for request in requests):
            return await asyncio.to_thread(self.prepare, requests, group)
        return self.prepare(requests, group)

    async def stream(self, sample: Sample) -> AsyncGenerator[SampleOutput, None]:
        """Run one sample; the last update has `finish`. Leaving early aborts it."""
        text = OutputText(self._tokenizer, sample.text, sample.request.prompt_ids)
        watch = self._metrics.begin()
        names = {sample.rid, sample.group}
        for name in names:
            self._running[name].add(sample.request.rid)
        try:
            async with aclosing(self._engine.stream(sample.request)) as events:
                async for event in events:
                    update = _judge(event, text)
                    watch.queued_seconds += event.queued_microseconds / 1e6
                    watch.see(len(update.token_ids), update.finish.type if update.finish is not None else "")
                    yield update
                    if update.finish is not None:
                        return
        except RequestError:
            watch.reason = "refused"
            raise
        except EngineError:
            watch.reason = "error"
            raise
        finally:
            watch.end()
            for name in names:
                self._running[name].discard(sample.request.rid)
                if not self._running[name]:
                    del self._running[name]

    async def complete(self, sample: Sample) -> SampleOutput:
        """Run one sample to its end."""
        collector = Collector(sample)
        async with aclosing(self.stream(sample)) as updates:
            async for update in updates:
                collector.add(update)
        return collector.result()

    async def complete_all(self, samples: Sequence[Sample]) -> list[SampleOutput]:
        """Run samples together; results in their order. When one raises, the others are aborted."""
        if len(samples) == 1:
            return [await self.complete(samples[0])]
        tasks = [asyncio.create_task(self.complete(sample)) for sample in samples]
        try:
            return await asyncio.gather(*tasks)
        finally:
            await _cancel(tasks)

    async def stream_all(
        self, samples: Sequence[Sample]
    ) -> AsyncGenerator[tuple[int, list[SampleOutput]], None]:
        """Run samples together; yields (index, updates since that sample's last turn).

        A slow reader gets fewer and larger turns, and holds no sample up.
        """
        if len(samples) == 1:
            async with aclosing(self.stream(samples[0])) as alone:
                async for update in alone:
                    yield 0, [update]
            return
        pending: list[list[SampleOutput]] = [[] for _ in samples]
        turns: asyncio.Queue[int | BaseException] = asyncio.Queue()

        async def run(index: int) -> None:
            try:
                async with aclosing(self.stream(samples[index])) as updates:
                    async for update in updates:
                        pending[index].append(update)
                        if len(pending[index]) == 1:
                            turns.put_nowait(index)
            except Exception as error:  # it is raised again where the turns are read
                turns.put_nowait(error)

        tasks = [asyncio.create_task(run(index)) for index in range(len(samples))]
        unfinished = len(samples)
        try:
            while unfinished:
                turn = await turns.get()
                if isinstance(turn, BaseException):
                    raise turn
                updates, pending[turn] = pending[turn], []
                unfinished -= updates[-1].finish is not None
                yield turn, updates
        finally:
            await _cancel(tasks)

    def abort(self, rid: str) -> int:
        """End the sample or the whole batch of that id; returns how many samples were told to end."""
        engine_rids = list(self._running.get(rid, ()))
        for engine_rid in engine_rids:
            self._engine.abort(engine_rid)
        return len(engine_rids)

    async def flush_cache(self) -> int:
        """Drop every unreferenced page of the prefix cache; returns their number."""
        return await self._engine.flush_cache()

    def abort_all(self) -> None:
        """End every sample."""
        self._engine.abort_all()

    def _deadline(self, request: GenerationRequest, arrived: float) -> float | None:
        seconds = request.deadline_seconds
        if seconds is None:
            seconds = self._default_deadline_seconds
        elif not (seconds > 0.0 and math.isfinite(seconds)):
            raise RequestError(f"deadline_seconds must be above 0, got {seconds:g}", "deadline_seconds")
        return None if seconds is None else arrived + seconds

    def _samples_of(
        self, request: GenerationRequest, index: int, group: str, deadline: float | None
    ) -> list[Sample]:
        params = request.params
        params.validate()
        if params.sample_index + params.n - 1 > LARGEST_SAMPLE_INDEX:
            raise RequestError("sample_index + n must lie in [1, 2^31]", "sample_index")
        if params.stop and self._tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer, so it has no stop strings", "stop")
        prompt_ids = self._prompt_ids(request)
        facts = self._engine.facts
        resolved = params.resolve(facts.sampling_defaults, self._default_seed(params))
        if resolved.min_new_tokens > resolved.max_new_tokens:  # a default, which validate has not seen
            message = f"min_new_tokens must not exceed max_new_tokens, which is {resolved.max_new_tokens}"
            raise RequestError(message, "min_new_tokens")
        text = TextOptions(
            stop=tuple(params.stop),
            min_new_tokens=params.min_new_tokens,
            skip_special_tokens=params.skip_special_tokens,
            keep_stop=params.no_stop_trim,
        )
        rid = request.rid or uuid.uuid4().hex
        grammar = self._grammar(request)
        samples = []
        for number in range(params.n):
            sampling = msgspec.structs.replace(resolved, sample_index=params.sample_index + number)
            engine_request = EngineRequest(
                rid=_engine_rid(),
                prompt_ids=prompt_ids,
                sampling=sampling,
                logprobs=request.logprobs,
                priority=request.priority,
                use_prefix_cache=request.use_prefix_cache,
                grammar=grammar,
                deadline=deadline,
            )
            if number == 0:
                validate_request(engine_request, facts)
            own = rid if params.n == 1 else f"{rid}_{number}"
            samples.append(Sample(own, group, index, engine_request, text))
        return samples

    def _prompt_ids(self, request: GenerationRequest) -> list[int]:
        if not isinstance(request.prompt, str):
            return list(request.prompt)
        if self._tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer: send token ids as input_ids", "text")
        token_ids = self._tokenizer.encode(request.prompt, request.add_special_tokens)
        if not token_ids:
            raise RequestError("text is empty: a prompt needs at least one token", "text")
        return token_ids

    def _grammar(self, request: GenerationRequest) -> str:
        """What the outputs must match, in the engine's language; empty: anything."""
        grammar = request.grammar or grammar_of_params(request.params)
        if grammar is None:
            return ""
        if self._grammars is None:
            self._grammars = GrammarChecker(self._tokenizer, self._engine.facts)
        self._grammars.check(grammar)
        return grammar.text

    def _default_seed(self, params: SamplingParams) -> int:
        if params.seed is not None:
            return DEFAULT_SEED  # not used
        configured = self._engine.facts.default_seed
        return secrets.randbits(RANDOM_SEED_BITS) if configured is None else configured


def _engine_rid() -> str:
    """A new id for the engine, which begins with the HTTP request's so that its log lines name it."""
    unique = uuid.uuid4().hex
    return f"{request_id.get()}/{unique}" if request_id.get() else unique


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _judge(event: RequestEvent, text: OutputText) -> SampleOutput:
    """Turn an event into an update that ends at the first match, however late it is noticed (trap 13)."""
    finish = _finish_reason(event)
    tokens = event.token_ids
    stop_token = finish.matched if finish is not None and isinstance(finish.matched, int) else None
    shown = ""
    for number, token_id in enumerate(tokens):
        if stop_token == token_id and number == len(tokens) - 1:
            break  # the stop token that ended it: its text is shown below, if at all
        shown += text.push(token_id)
        if text.matched is not None:
            tokens = tokens[: number + 1]
            finish = FinishReason("stop", matched=text.matched)
            break
    if finish is not None and text.matched is None:
        shown += text.finish(stop_token if tokens and tokens[-1] == stop_token else None)
        if text.matched is not None:
            finish = FinishReason("stop", matched=text.matched)
    return SampleOutput(
        text=shown,
        token_ids=tuple(tokens),
        logprobs=tuple(event.logprobs[: len(tokens)]),
        prompt_logprobs=None if event.prompt_logprobs is None else tuple(event.prompt_logprobs),
        cached_tokens=event.cached_tokens,
        warnings=tuple(event.warnings),
        finish=finish,
    )


def _finish_reason(event: RequestEvent) -> FinishReason | None:
    if event.finish is None:
        return None
    ended = event.finish
    return FinishReason(ended.reason, ended.matched_token, ended.message, ended.impossible)


def _warn_of_duplicates(samples: list[Sample]) -> list[Sample]:
    """Say so where two samples of a batch draw the same noise for the same prompt."""
    seen: dict[tuple[tuple[int, ...], int, int], int] = defaultdict(int)

    def key(sample: Sample) -> tuple[tuple[int, ...], int, int]:
        sampling = sample.request.sampling
        return tuple(sample.request.prompt_ids), sampling.seed, sampling.sample_index

    random = [sample for sample in samples if sample.request.sampling.temperature > 0.0]
    if len(random) < 2:
        return samples
    for sample in random:
        seen[key(sample)] += 1
    if len(seen) == len(random):
        return samples
    warned = []
    for sample in samples:
        sampling = sample.request.sampling
        copies = seen[key(sample)] if sampling.temperature > 0.0 else 1
        if copies > 1:
            message = (
                f"{copies} samples of this batch have the same prompt, seed {sampling.seed} and sample_index "
                f"{sampling.sample_index}, so they are equal; use n, or give each its own seed or sample_index"
            )
            sample = replace(sample, warnings=(*sample.warnings, message))
        warned.append(sample)
    repeated = sum(count - 1 for count in seen.values())
    log.warning("%d of %d samples in a batch repeat another's prompt, seed and index", repeated, len(samples))
    return warned
