"""The ASGI application: routes of every API over one front, and errors in one shape."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from samebits.config import EngineConfig, ModelConfig
from samebits.errors import SamebitsError
from samebits.server.front import Front
from samebits.server.http import UnavailableError, error_response
from samebits.server.info import InfoRoutes
from samebits.server.native import NativeRoutes
from samebits.server.openai import OpenAIRoutes


def create_app(front: Front, model: ModelConfig, engine: EngineConfig) -> Starlette:
    """The application of `front`; `model` and `engine` are only reported."""
    kinds = (SamebitsError, UnavailableError, HTTPException, ClientDisconnect, Exception)
    return Starlette(
        routes=[
            *InfoRoutes(front, model, engine).routes(),
            *NativeRoutes(front).routes(),
            *OpenAIRoutes(front).routes(),
        ],
        exception_handlers=dict.fromkeys(kinds, error_response),
    )
