"""The offline API: a model in this process, prompts in, completions out.

with LLM("path/to/model") as llm:
    [completion] = llm.generate("The same request", SamplingParams(temperature=0.0))
"""

from __future__ import annotations

import asyncio
import atexit
import collections.abc
import multiprocessing.util  # noqa: F401  (at exit it joins processes; what is registered later comes first)
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, TypeVar

from tqdm import tqdm

from samebits.config import EngineConfig, ModelConfig, resolve
from samebits.engine.async_engine import AsyncEngine
from samebits.engine.build import build_engine
from samebits.engine.messages import EngineFacts, EngineStatus, LogprobOptions, TokenLogprobs
from samebits.engine.service import BuildEngine
from samebits.engine.transport import ThreadTransport
from samebits.errors import ConfigError, RequestError
from samebits.generation.arguments import Prompts, list_params, list_prompts
from samebits.generation.generator import Generator
from samebits.generation.samples import (
    Collector,
    FinishReason,
    GenerationRequest,
    Sample,
    SampleOutput,
)
from samebits.generation.text_parts import load_text_parts
from samebits.sampling_params import ResolvedSampling, SamplingParams

Result = TypeVar("Result")
Message = Mapping[str, Any]
THREADS = "samebits-"
"""what the names of our threads begin with"""


@dataclass(frozen=True)
class Completion:
    """One finished sample."""

    prompt: str | None
    """the prompt's text, or None when token ids were given"""
    prompt_index: int
    """which prompt of the call"""
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None
    """one a token, when asked for; every float is a float32 value exactly"""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None
    """from `logprob_start_len` on, when asked for; that of position 0 is None"""
    sampling: ResolvedSampling
    """the parameters, nothing left open"""
    fingerprint: str
    """of the plan that made it"""
    cached_tokens: int
    """prompt tokens that came out of the prefix cache"""
    warnings: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """The seed as an unsigned 64-bit integer."""
        return self.sampling.seed

    @property
    def sample_index(self) -> int:
        return self.sampling.sample_index


class LLM:
    """A model loaded into this process, with the engine in a thread of its own.

    `settings` are the fields of `ModelConfig` and `EngineConfig` by name; what is not given comes from the
    environment or the defaults. Raises `ConfigError` for an unknown setting or a model that cannot be loaded.
    Calls block, from ordinary code and from a notebook's running event loop alike. The engine ends with `close`, at the
    end of a `with` block, or else with the last reference to this object or with the process.
    """

    def __init__(self, model: str = "bundled", *, build: BuildEngine = build_engine, **settings: Any) -> None:
        _check_settings(settings)
        model_config = resolve(ModelConfig, {**settings, "model": model})
        engine_config = resolve(EngineConfig, settings)
        if engine_config.data_parallel != 1:
            raise ConfigError("data_parallel is for a server: an LLM is one engine")
        if "max_waiting" not in settings:
            # The queue's limit protects a server from its clients; here all prompts of a call are there already.
            engine_config = replace(engine_config, max_waiting=sys.maxsize)
        transport = ThreadTransport(model_config, engine_config, build)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{THREADS}front", daemon=True)
        self._thread.start()
        self._engine = AsyncEngine(transport)
        self._finalizer = weakref.finalize(self, _end_from_anywhere, self._engine, self._loop, self._thread)
        atexit.register(self._finalizer)
        try:
            self._text = load_text_parts(self._wait(self._engine.start()))
        except BaseException:
            self.close()
            raise
        self._generator = Generator(self._engine, self._text.tokenizer)

    @property
    def facts(self) -> EngineFacts:
        """Constants of the running engine: vocabulary, context length, fingerprint and more."""
        return self._engine.facts

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        return_logprob: bool = False,
        logprob_start_len: int = -1,
        top_logprobs_num: int = 0,
        token_ids_logprob: Sequence[int] = (),
        processed_logprobs: bool = False,
        use_prefix_cache: bool = True,
        deadline_seconds: float | None = None,
    ) -> list[Completion]:
        """Complete prompts: one text, a list of texts, one list of token ids, or a list of such lists.

        Returns one `Completion` a sample, in the order of the prompts; the `n` samples of a prompt stand together.
        `sampling_params` is one for all prompts or one each. The logprob options are those of /generate.
        What is not done after `deadline_seconds` is cut short, with the finish reason `deadline`. `progress` shows
        a bar when standard error is a terminal. Raises `RequestError` naming the parameter.
        """
        listed = list_prompts(prompts)
        logprobs = LogprobOptions()
        if return_logprob:
            logprobs = LogprobOptions(
                output=True,
                prompt_start=logprob_start_len,
                top=top_logprobs_num,
                token_ids=list(token_ids_logprob),
                processed=processed_logprobs,
            )
        requests = [
            GenerationRequest(
                prompt, params, logprobs, use_prefix_cache=use_prefix_cache, deadline_seconds=deadline_seconds
            )
            for prompt, params in zip(listed, list_params(sampling_params, len(listed)), strict=True)
        ]
        return self._run(requests, progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        return_logprob: bool = False,
        logprob_start_len: int = -1,
        top_logprobs_num: int = 0,
        tools: Sequence[Message] | None = None,
        date: datetime | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """Answer a conversation, or a list of them: lists of `{"role": ..., "content": ...}`.

        `date` is what a template sees as today, which is otherwise no part of the request.
        """
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            self.chat_prompt(conversation, tools=tools, date=date, template_variables=template_variables)
            for conversation in conversations
        ]
        logprobs = LogprobOptions(
            output=return_logprob,
            prompt_start=logprob_start_len if return_logprob else -1,
            top=top_logprobs_num if return_logprob else 0,
        )
        requests = [
            GenerationRequest(prompt, params, logprobs, add_special_tokens=False)
            for prompt, params in zip(prompts, list_params(sampling_params, len(prompts)), strict=True)
        ]
        return self._run(requests, progress)

    def stream_chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> collections.abc.Generator[str, None, None]:
        """Answer one conversation, piece by piece as it comes. Leaving the iteration early ends the request."""
        prompt = self.chat_prompt(messages)
        [params] = list_params(sampling_params, 1)
        request = GenerationRequest(prompt, params, add_special_tokens=False)
        with closing(self._stream(request)) as updates:
            for update in updates:
                if update.finish is not None and update.finish.type == "error":
                    raise update.finish.error
                yield update.text

    def stream(
        self, prompt: str | Sequence[int], sampling_params: SamplingParams | None = None
    ) -> Iterator[SampleOutput]:
        """Complete one prompt, a text or token ids, yielding what is new as it comes; the last one has `finish`."""
        listed = list_prompts(prompt)
        if len(listed) != 1:
            raise RequestError(f"a stream has one prompt, got {len(listed)}", "prompts")
        [params] = list_params(sampling_params, 1)
        return self._stream(GenerationRequest(listed[0], params))

    def chat_prompt(
        self,
        messages: Any,
        *,
        tools: Sequence[Message] | None = None,
        date: datetime | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the checkpoint's chat template makes of a conversation."""
        template = self._text.chat_template
        if template is None:
            raise RequestError("this checkpoint has no chat template; use generate", "messages")
        return template.render(messages, tools=tools, date=date, variables=template_variables)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, as `generate` sees them."""
        if self._text.tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer", "text")
        return self._text.tokenizer.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        if self._text.tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer", "token_ids")
        return self._text.tokenizer.decode(token_ids, skip_special_tokens)

    def flush_cache(self) -> int:
        """Drop every unreferenced page of the prefix cache; returns their number."""
        self._check_open()
        return self._wait(self._engine.flush_cache())

    def status(self) -> EngineStatus:
        """Counters of the engine."""
        self._check_open()
        return self._wait(self._engine.status())

    def close(self) -> None:
        """Stop the engine. A second call does nothing."""
        atexit.unregister(self._finalizer)
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, requests: list[GenerationRequest], progress: bool) -> list[Completion]:
        self._check_open()
        samples = self._generator.prepare(requests)
        with tqdm(total=len(samples), unit="sample", disable=not (progress and sys.stderr.isatty())) as bar:
            results = self._wait(self._collect(samples, bar.update))
        fingerprint = self.facts.fingerprint
        return [
            _completion(requests[sample.prompt_index].prompt, sample, result, fingerprint)
            for sample, result in zip(samples, results, strict=True)
        ]

    def _stream(self, request: GenerationRequest) -> collections.abc.Generator[SampleOutput, None, None]:
        self._check_open()
        if request.params.n != 1:
            raise RequestError("a stream has one sample: n must be 1", "n")
        [sample] = self._generator.prepare([request])
        updates = self._generator.stream(sample)
        finished = False
        try:
            while not finished:
                update = self._wait(anext(updates))
                finished = update.finish is not None
                yield update
        finally:
            if threading.current_thread() is self._thread:
                # Garbage is collected in any thread, and the front's own cannot wait for itself.
                self._loop.create_task(_await(updates.aclose()))
            elif self._finalizer.alive:
                self._wait(updates.aclose())

    async def _collect(self, samples: list[Sample], finished: Callable[[int], object]) -> list[SampleOutput]:
        collectors = [Collector(sample) for sample in samples]
        async with aclosing(self._generator.stream_all(samples)) as turns:
            async for index, updates in turns:
                for update in updates:
                    collectors[index].add(update)
                if updates[-1].finish is not None:
                    finished(1)
        return [collector.result() for collector in collectors]

    def _wait(self, work: Awaitable[Result]) -> Result:
        """Run a coroutine in the front's thread. An interrupt of this one cancels it, and so aborts its requests."""
        self._check_open()
        future = asyncio.run_coroutine_threadsafe(_await(work), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise ConfigError("this LLM is closed")


async def _await(work: Awaitable[Result]) -> Result:
    return await work


def _end(engine: AsyncEngine, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Stop an engine, and the loop and the thread that talk to it."""
    asyncio.run_coroutine_threadsafe(engine.shutdown(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def _end_from_anywhere(
    engine: AsyncEngine, loop: asyncio.AbstractEventLoop, thread: threading.Thread
) -> None:
    """As `_end`. Garbage may be collected in one of our own threads, which cannot wait for itself."""
    if threading.current_thread().name.startswith(THREADS):
        threading.Thread(target=_end, args=(engine, loop, thread)).start()
    else:
        _end(engine, loop, thread)


def _check_settings(settings: Mapping[str, Any]) -> None:
    known = {entry.name for kind in (ModelConfig, EngineConfig) for entry in fields(kind)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(f"unknown settings: {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def _completion(
    prompt: str | Sequence[int], sample: Sample, result: SampleOutput, fingerprint: str
) -> Completion:
    assert result.finish is not None
    request = sample.request
    return Completion(
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_index=sample.prompt_index,
        prompt_token_ids=tuple(request.prompt_ids),
        text=result.text,
        token_ids=result.token_ids,
        finish_reason=result.finish,
        logprobs=result.logprobs if request.logprobs.output else None,
        prompt_logprobs=result.prompt_logprobs,
        sampling=request.sampling,
        fingerprint=fingerprint,
        cached_tokens=result.cached_tokens,
        warnings=result.warnings,
    )
