"""/start_profile and /stop_profile: a trace of the engine's process, for whoever runs the server."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from samebits.errors import RequestError
from samebits.server.fields import convert_object, decode_object
from samebits.server.front import Front
from samebits.server.http import json_response, read_body

INERT_FIELDS = {"activities": "what the device has is recorded"}
REFUSED_FIELDS = {
    "merge_profiles": "merged traces",
    "num_steps": "a number of steps",
    "output_dir": "folders named by a client",
    "profile_by_stage": "traces by stage",
    "profile_id": "names given by a client",
    "profile_prefix": "names given by a client",
    "profile_stages": "traces by stage",
    "record_shapes": "shapes",
    "start_step": "a later start",
    "with_stack": "stacks",
}


class ProfileBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of /start_profile; SGLang's fields are inert, refused, or blank."""


class ProfileRoutes:
    """Profiles of one server's engine."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [
            Route("/start_profile", self.start, methods=["POST"]),
            Route("/stop_profile", self.stop, methods=["POST"]),
        ]

    async def start(self, request: Request) -> Response:
        """Begin to record; answers with the files that the trace will be in."""
        folder = self._folder()
        data = await read_body(request, self._front.body_limit)
        if data.strip():
            convert_object(decode_object(data), ProfileBody, "", INERT_FIELDS, REFUSED_FIELDS)
        _ = self._front.generator  # 503 while there is no engine
        return json_response({"traces": await self._front.engine.start_profile(folder)})

    async def stop(self, request: Request) -> Response:
        """Write the trace; answers with its files. The engine stands still meanwhile."""
        self._folder()
        _ = self._front.generator
        return json_response({"traces": await self._front.engine.stop_profile()})

    def _folder(self) -> str:
        folder = self._front.config.profile_folder
        if not folder:
            raise RequestError("profiles are off: start the server with --profile-folder FOLDER")
        return folder
