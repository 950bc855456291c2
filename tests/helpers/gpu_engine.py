"""Engines on a GPU for tests: small sizes, requests of every kind, answers as bytes."""

from __future__ import annotations

from typing import Any

import msgspec

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.build import build_engine
from samebits.engine.engine import Engine
from samebits.engine.messages import EngineRequest, LogprobOptions, RequestEvent
from samebits.sampling_params import ResolvedSampling


def gpu_engine(
    model: str = "tiny",
    load_format: str = "dummy",
    numerics: str = "exact",
    dtype: str = "auto",
    attention_split_tokens: int = 0,
    **sizes: Any,
) -> Engine:
    """A small engine on the GPU. The proofs of its kernels are kept where the user's are."""
    sizes = {"kv_memory_mib": 512, "max_running": 32, "step_tokens": 512} | sizes
    config = ModelConfig(
        model=model,
        load_format=load_format,
        numerics=numerics,
        device="cuda",
        context_length=1024,
        dtype=dtype,
        attention_split_tokens=attention_split_tokens,
    )
    return build_engine(config, EngineConfig(**sizes), lambda *news: None)


def mixed_requests(count: int, vocabulary: int, wishes: bool, tokens: int = 12) -> list[EngineRequest]:
    """Requests of different lengths and temperatures; with `wishes`, half of them ask for filters and logprobs."""
    made = []
    for number in range(count):
        wishful = wishes and number % 2 == 1
        filters = {"top_p": 0.9, "frequency_penalty": 0.3, "min_new_tokens": 2} if wishful else {}
        sampling = ResolvedSampling(
            temperature=0.0 if number % 3 == 0 else 1.0,
            max_new_tokens=tokens,
            ignore_eos=True,
            seed=number,
            **filters,
        )
        logprobs = LogprobOptions(output=True)
        if wishful:
            logprobs = LogprobOptions(output=True, top=3, token_ids=[5, 6], prompt_start=0)
        prompt = [(17 * number + 31 * place) % (vocabulary - 1) for place in range(3 + 37 * (number % 11))]
        made.append(EngineRequest(rid=str(number), prompt_ids=prompt, sampling=sampling, logprobs=logprobs))
    return made


def answers(engine: Engine, asked: list[EngineRequest]) -> dict[str, bytes]:
    """Run the requests together; what each client receives, as bytes."""
    events: dict[str, list[RequestEvent]] = {}
    for one in asked:
        engine.submit(one)
    while engine.has_work():
        for event in engine.step():
            events.setdefault(event.rid, []).append(event)
        engine.scheduler.check()
    return {rid: _encoded(news) for rid, news in events.items()}


def solo_answers(engine: Engine, asked: list[EngineRequest]) -> dict[str, bytes]:
    """Run the requests one by one, each with a cold cache."""
    found: dict[str, bytes] = {}
    for one in asked:
        engine.flush_cache()
        found |= answers(engine, [one])
    return found


def _encoded(news: list[RequestEvent]) -> bytes:
    tokens = [token for event in news for token in event.token_ids]
    logprobs = [entry for event in news for entry in event.logprobs]
    return msgspec.msgpack.encode((tokens, logprobs, news[0].prompt_logprobs, news[-1].finish))
