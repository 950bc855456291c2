"""Whom a command asks: the server at a URL, or the same routes over a model in this process."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from samebits.client import AsyncClient, Reply
from samebits.commands.flags import settings_of
from samebits.config import EngineConfig, ModelConfig, ServerConfig


class Asked(Protocol):
    """A server, here or elsewhere."""

    async def request(self, method: str, path: str, body: bytes | None = None) -> Reply: ...


def add_asked(group: Any) -> None:
    """`--url` and `--api-key`."""
    group.add_argument("--url", metavar="URL", help="ask the server there instead of a model in this process")
    group.add_argument(
        "--api-key",
        default=os.environ.get("SAMEBITS_API_KEY", ""),
        metavar="KEY",
        help="sent as bearer token",
    )


@asynccontextmanager
async def open_asked(options: argparse.Namespace, name: str = "") -> AsyncGenerator[tuple[Asked, str], None]:
    """(server, fingerprint): that of `--url`, else the model in this process, which answers to `name`.

    The fingerprint of a server that tells none is empty.
    """
    if options.url:
        client = AsyncClient(options.url, options.api_key)
        reply = await client.request("GET", "/model_info")
        facts = reply.json() if reply.status == 200 else None
        yield client, str(facts.get("fingerprint", "")) if isinstance(facts, dict) else ""
        return
    from samebits.server.local import local_server

    model, engine = settings_of(options, ModelConfig), settings_of(options, EngineConfig)
    config = ServerConfig(served_model_name=name or model.model)
    async with local_server(model, engine, config) as local:
        yield local, local.fingerprint
