"""An engine whose next token is a hash of what a real one could see, with the same interface.

Its settings lie in `fake.json` of the checkpoint folder, so that it can be built in another process.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.masks import MaskSource, Matcher
from samebits.engine.messages import (
    AbortRequest,
    EngineFacts,
    EngineRequest,
    EngineStatus,
    Finish,
    RequestEvent,
    TokenLogprobs,
)
from samebits.engine.service import Progress
from samebits.engine.validate import QueueFullError, validate_request
from samebits.errors import ConfigError, RequestError
from samebits.grammar.compiler import GrammarError, read_compiler
from samebits.grammar.matchers import GrammarMasks
from samebits.sampling_params import SamplingDefaults

CRASH_TOKEN, KILL_TOKEN, FAULT_TOKEN = 301, 302, 303
"""prompts that begin with these make a step raise, kill the process, or fail their own request"""
PARROT_TEMPLATE = (
    "{# knows <tool_call> and </think> #}{{ '<|start|>' + messages[-1].content + '<|end|>' }}"
    "{% if opened %}{{ '<think>\n' }}{% endif %}"
)
SILENT_TOKEN = 304
"""prompts that begin with it get no token, ever"""


@dataclass
class _Running:
    spec: EngineRequest
    tokens: list[int]
    announced: bool = False
    matcher: Matcher | None = None


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def float32_logprob(*parts: object) -> float:
    """A float32 value in [-20, 0) with a full mantissa."""
    fraction = int.from_bytes(_digest(*parts)[:4], "big") / (1 << 32)
    return float(struct.unpack("f", struct.pack("f", -20.0 * (1.0 - fraction)))[0])


@dataclass
class FakeEngine:
    """Deterministic, quick, and without a model."""

    facts: EngineFacts
    max_waiting: int
    delay: float
    script: list[int]
    """these output tokens for every request, when given"""
    parrot: bool
    """say what stands in the prompt between its tokens 1 and 2, and end"""
    masks: MaskSource
    _running: dict[str, _Running] = field(default_factory=dict)
    _events: list[RequestEvent] = field(default_factory=list)
    _steps: int = 0
    _generated: int = 0

    def submit(self, request: EngineRequest) -> None:
        validate_request(request, self.facts)
        if len(self._running) >= self.max_waiting:
            raise QueueFullError(f"the queue is full ({self.max_waiting} requests are waiting)")
        entry = self._running[request.rid] = _Running(request, list(request.prompt_ids))
        if request.grammar:
            entry.matcher = self.masks.matcher(request.grammar)

    def abort(self, command: AbortRequest) -> None:
        if command.rid in self._running:
            del self._running[command.rid]
            finish = Finish(reason="abort", message="aborted")
            self._events.append(RequestEvent(rid=command.rid, finish=finish))

    def has_work(self) -> bool:
        return bool(self._running or self._events)

    def status(self, call: int) -> EngineStatus:
        return EngineStatus(
            call=call,
            running=len(self._running),
            waiting=0,
            steps=self._steps,
            kv_pages_total=100,
            kv_pages_used=len(self._running),
            prompt_tokens=0,
            generated_tokens=self._generated,
            cached_tokens=0,
            preemptions=0,
        )

    def flush_cache(self) -> int:
        return 3

    def close(self) -> None:
        pass

    def step(self) -> list[RequestEvent]:
        events, self._events = self._events, []
        if self._running:
            self._steps += 1
            time.sleep(self.delay)
        for entry in list(self._running.values()):
            event = self._advance(entry)
            if event is None:
                continue
            if event.finish is not None:
                del self._running[entry.spec.rid]
            events.append(event)
        return events

    def _advance(self, entry: _Running) -> RequestEvent | None:
        spec = entry.spec
        first = spec.prompt_ids[0]
        if spec.deadline is not None and spec.deadline <= time.monotonic():
            return RequestEvent(rid=spec.rid, finish=Finish(reason="deadline", message="its deadline passed"))
        if first == SILENT_TOKEN:
            return None
        if first == CRASH_TOKEN:
            raise RuntimeError("a step went wrong")
        if first == KILL_TOKEN:
            os.kill(os.getpid(), signal.SIGKILL)
        prompt_logprobs = None
        if not entry.announced and spec.logprobs.prompt_start >= 0:
            start = spec.logprobs.prompt_start
            prompt_logprobs = [
                self._score(spec, spec.prompt_ids, p) for p in range(start, len(spec.prompt_ids))
            ]
        entry.announced = True
        if first == FAULT_TOKEN:
            finish = Finish(reason="error", message="the model's logits are not finite for this request")
            return RequestEvent(rid=spec.rid, finish=finish)
        if spec.sampling.max_new_tokens == 0:
            return RequestEvent(rid=spec.rid, prompt_logprobs=prompt_logprobs, finish=Finish(reason="length"))
        try:
            token_id = self._next(entry)
        except RequestError as error:
            finish = Finish(reason="error", message=str(error), refusal="request", field=error.field)
            return RequestEvent(rid=spec.rid, finish=finish)
        except GrammarError as error:
            finish = Finish(reason="error", message=str(error), impossible=True)
            return RequestEvent(rid=spec.rid, prompt_logprobs=prompt_logprobs, finish=finish)
        entry.tokens.append(token_id)
        self._generated += 1
        logprobs = [self._score(spec, entry.tokens, len(entry.tokens) - 1)] if spec.logprobs.output else []
        return RequestEvent(
            rid=spec.rid,
            token_ids=[token_id],
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish=self._finish(entry, token_id),
        )

    def _next(self, entry: _Running) -> int:
        """The next token. Raises what the mask's future does."""
        sampling = entry.spec.sampling
        produced = len(entry.tokens) - len(entry.spec.prompt_ids)
        noise = (sampling.seed, sampling.sample_index) if sampling.temperature > 0.0 else ()
        digest = _digest(tuple(entry.tokens), noise, sorted(sampling.logit_bias.items()))
        if entry.matcher is not None:
            mask = entry.matcher.mask().result()
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            token_id = int(allowed[int.from_bytes(digest[:8], "big") % len(allowed)])
            entry.matcher.accept(token_id)
            return token_id
        if self.parrot:
            prompt = entry.spec.prompt_ids
            return [*prompt[prompt.index(1) + 1 : prompt.index(2)], 0][produced]
        if self.script:
            return self.script[produced % len(self.script)]
        # Ids 0 to 2 are special; the hash keeps clear of them and of the tokens that mean trouble.
        return 3 + int.from_bytes(digest[:8], "big") % 290

    def _finish(self, entry: _Running, token_id: int) -> Finish | None:
        sampling = entry.spec.sampling
        stops = set(sampling.stop_token_ids) | (
            set() if sampling.ignore_eos else set(self.facts.eos_token_ids)
        )
        produced = len(entry.tokens) - len(entry.spec.prompt_ids)
        if token_id in stops and produced >= sampling.min_new_tokens:
            return Finish(reason="stop", matched_token=token_id)
        if produced >= sampling.max_new_tokens or len(entry.tokens) >= self.facts.context_length:
            return Finish(reason="length")
        return None

    def _score(self, spec: EngineRequest, tokens: list[int], position: int) -> TokenLogprobs:
        if position == 0:
            return TokenLogprobs(tokens[0], None)
        prefix = tuple(tokens[:position])
        ids = range(self.facts.vocabulary if spec.logprobs.top else 0)
        top = sorted((-float32_logprob(prefix, i), i) for i in ids)
        return TokenLogprobs(
            tokens[position],
            float32_logprob(prefix, tokens[position]),
            [(-negated, i) for negated, i in top[: spec.logprobs.top]],
            [(float32_logprob(prefix, i), i) for i in spec.logprobs.token_ids],
        )


def build_fake_engine(model: ModelConfig, engine: EngineConfig, progress: Progress) -> FakeEngine:
    """As `samebits.engine.build.build_engine`; reads `fake.json` in the folder `model.model`."""
    folder = Path(model.model)
    settings = json.loads((folder / "fake.json").read_text())
    if settings.get("broken"):
        raise ConfigError("this checkpoint is broken on purpose")
    time.sleep(settings.get("load_seconds", 0.0))
    progress("loading", 1, 1)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    facts = EngineFacts(
        model="fake",
        folder=str(folder),
        family="fake",
        vocabulary=tokenizer.get_vocab_size(),
        context_length=settings.get("context_length", 2048),
        kv_tokens=4096,
        eos_token_ids=[0],
        sampling_defaults=SamplingDefaults(temperature=settings.get("temperature", 1.0)),
        default_seed=None if model.default_seed == "random" else int(model.default_seed),
        profile=model.numerics,
        promises_bits=True,
        fingerprint=settings.get("fingerprint", "fake-fingerprint"),
        plan={"model": "fake"},
    )
    return FakeEngine(
        facts,
        engine.max_waiting,
        settings.get("delay", 0.0),
        settings.get("script", []),
        settings.get("parrot", False),
        GrammarMasks(lambda: read_compiler(folder, facts.vocabulary, facts.eos_token_ids)),
    )


def write_checkpoint(folder: Path, **settings: object) -> Path:
    """A folder that `build_fake_engine` can serve."""
    from tiny_tokenizer import write_tokenizer

    write_tokenizer(folder)
    (folder / "fake.json").write_text(json.dumps(settings))
    return folder


if __name__ == "__main__":
    import sys

    from samebits.config import ServerConfig
    from samebits.server.lifecycle import serve

    _, folder_name, engine_settings, server_settings = sys.argv
    sys.exit(
        serve(
            ModelConfig(model=folder_name),
            EngineConfig(**json.loads(engine_settings)),
            ServerConfig(**json.loads(server_settings)),
            build="fake_engine:build_fake_engine",
        )
    )
