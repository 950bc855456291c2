"""Health and facts: /health, /ready, /health_generate, /server_info, /model_info, /version."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import samebits
from samebits.config import EngineConfig, ModelConfig, shown
from samebits.errors import EngineError
from samebits.generation.samples import GenerationRequest
from samebits.sampling_params import SamplingParams
from samebits.server.front import Front, Phase
from samebits.server.http import UnavailableError, json_response

PROBE_SECONDS = 20.0
PROBE_PRIORITY = 1 << 20
"""a probe asks whether the engine turns, not how long its queue is"""


class InfoRoutes:
    """Facts of one server."""

    def __init__(self, front: Front, model: ModelConfig, engine: EngineConfig) -> None:
        self._front = front
        self._settings = shown(model) | shown(engine) | shown(front.config)

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/health_generate", self.health_generate, methods=["GET"]),
            Route("/server_info", self.server_info, methods=["GET"]),
            Route("/get_server_info", self.server_info, methods=["GET"]),
            Route("/model_info", self.model_info, methods=["GET"]),
            Route("/get_model_info", self.model_info, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        """Alive: 200 from the first time that requests are taken, else 503; with the phase."""
        phase = self._front.phase
        return json_response({"status": phase.value}, 503 if phase in (Phase.STARTING, Phase.FAILED) else 200)

    async def ready(self, request: Request) -> Response:
        """200 while requests are taken, else 503; with the phase."""
        phase = self._front.phase
        return json_response({"status": phase.value}, 200 if phase is Phase.READY else 503)

    async def health_generate(self, request: Request) -> Response:
        """200 once the engine has generated a token."""
        generator = self._front.generator
        probe = GenerationRequest(
            prompt=[0],
            params=SamplingParams(temperature=0.0, max_new_tokens=1, ignore_eos=True),
            priority=PROBE_PRIORITY,
            use_prefix_cache=False,
        )
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                [result] = await generator.complete_all(generator.prepare([probe]))
        except TimeoutError as error:
            raise UnavailableError(f"no token came within {PROBE_SECONDS:g} s") from error
        if result.finish is None or result.finish.type == "error":
            raise EngineError(result.finish.message if result.finish else "the probe did not finish")
        return json_response({"status": "ready"})

    async def server_info(self, request: Request) -> Response:
        """Settings, plan and counters."""
        facts = self._front.generator.facts
        status = msgspec.to_builtins(await self._front.engine.status())
        del status["call"], status["type"]
        body = self._settings | {
            "version": samebits.__version__,
            "model_path": facts.model,
            "served_model_name": self._front.model_name,
            "status": self._front.phase.value,
            "uptime_seconds": time.time() - self._front.started_at,
            "fingerprint": facts.fingerprint,
            "numerics": facts.profile,
            "promises_bits": facts.promises_bits,
            "plan": facts.plan,
            "max_total_num_tokens": facts.kv_tokens,
            "engine": status,
        }
        return json_response(body)

    async def model_info(self, request: Request) -> Response:
        """What a client needs to know of the model."""
        facts = self._front.generator.facts
        body: dict[str, Any] = {
            "model_path": facts.model,
            "tokenizer_path": facts.folder,
            "served_model_name": self._front.model_name,
            "is_generation": True,
            "model_type": facts.family,
            "vocab_size": facts.vocabulary,
            "context_length": facts.context_length,
            "eos_token_ids": facts.eos_token_ids,
            "has_chat_template": self._front.chat_template is not None,
            "default_sampling_params": msgspec.to_builtins(facts.sampling_defaults),
            "default_seed": "random" if facts.default_seed is None else facts.default_seed,
            "fingerprint": facts.fingerprint,
            "weight_version": "default",
        }
        return json_response(body)

    async def version(self, request: Request) -> Response:
        return json_response({"version": samebits.__version__})
