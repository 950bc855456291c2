"""The ASGI application: routes of every API over one front, and errors in one shape."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from samebits.config import EngineConfig, ModelConfig
from samebits.errors import SamebitsError
from samebits.server.anthropic import AnthropicRoutes
from samebits.server.front import Front
from samebits.server.guard import guarded
from samebits.server.http import UnavailableError, error_response
from samebits.server.info import InfoRoutes
from samebits.server.metrics_route import MetricsRoutes
from samebits.server.native import NativeRoutes
from samebits.server.openai import OpenAIRoutes
from samebits.server.openapi import OpenApiRoutes
from samebits.server.page_routes import page_routes
from samebits.server.profile_routes import ProfileRoutes


def create_app(front: Front, model: ModelConfig, engine: EngineConfig) -> ASGIApp:
    """The application of `front`; `model` and `engine` are only reported. Raises `ConfigError` naming a bad setting."""
    kinds = (SamebitsError, UnavailableError, HTTPException, ClientDisconnect, Exception)
    routes = [
        *InfoRoutes(front, model, engine).routes(),
        *MetricsRoutes(front).routes(),
        *ProfileRoutes(front).routes(),
        *NativeRoutes(front).routes(),
        *OpenAIRoutes(front).routes(),
        *AnthropicRoutes(front).routes(),
        *(page_routes() if front.config.page else ()),
    ]
    routes += OpenApiRoutes(routes).routes()
    return guarded(Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, error_response)), front)
