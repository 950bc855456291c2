"""Several engines of one plan behind one transport: `--dp N`.

To those above it is one engine that runs N times as much. A replica with another fingerprint is refused, and one
that dies ends them all, for then they are started anew together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec

from samebits.engine.messages import (
    AbortRequest,
    Command,
    EngineFacts,
    EngineFailed,
    EngineProgress,
    EngineReady,
    EngineRequest,
    EngineStatus,
    FlushCache,
    FlushReply,
    GetStatus,
    Message,
    ProfileReply,
    Reply,
    RequestEvent,
    StartProfile,
    StopProfile,
)
from samebits.engine.routing import Router
from samebits.engine.transport import Deliver, Transport


class ReplicaTransport:
    """A `Transport` over others. Belongs to the event loop that starts it, as they do."""

    def __init__(self, replicas: Sequence[Transport]) -> None:
        self._replicas = list(replicas)
        self._router = Router(len(self._replicas))
        self._facts: dict[int, EngineFacts] = {}
        self._replies: dict[int, list[Reply]] = {}
        self._failed = False

    def start(self, deliver: Deliver) -> None:
        for index, replica in enumerate(self._replicas):
            replica.start(partial(self._deliver, deliver, index))

    def send(self, command: Command) -> None:
        match command:
            case EngineRequest():
                wanted = command.replica
                if wanted is not None and not 0 <= wanted < len(self._replicas):
                    wanted = None
                index = self._router.place(command.rid, command.prompt_ids, wanted)
                self._replicas[index].send(command)
            case AbortRequest(rid=rid, prefix=False) if rid:
                owner = self._router.owner(rid)
                if owner is not None:
                    self._replicas[owner].send(command)
            case FlushCache() | GetStatus() | StartProfile() | StopProfile():
                self._replies[command.call] = []
                self._send_all(command)
            case _:
                self._send_all(command)

    async def stop(self) -> None:
        await asyncio.gather(*(replica.stop() for replica in self._replicas))

    def _send_all(self, command: Command) -> None:
        for replica in self._replicas:
            replica.send(command)

    def _deliver(self, deliver: Deliver, index: int, messages: list[Message]) -> None:
        out: list[Message] = []
        for message in messages:
            match message:
                case RequestEvent():
                    if message.finish is not None:
                        self._router.finish(message.rid)
                    out.append(message)
                case EngineProgress():
                    out.append(msgspec.structs.replace(message, stage=f"replica {index}: {message.stage}"))
                case EngineReady():
                    out += self._ready(index, message.facts)
                case EngineStatus() | FlushReply() | ProfileReply():
                    out += self._joined(message)
                case EngineFailed():
                    out += self._fail(f"replica {index}: {message.message}", message)
        if out:
            deliver(out)

    def _ready(self, index: int, facts: EngineFacts) -> list[Message]:
        """Ready when all are, and all are the same."""
        self._facts[index] = facts
        if len(self._facts) < len(self._replicas):
            return []
        first = self._facts[0]
        for other, found in sorted(self._facts.items()):
            if found.fingerprint != first.fingerprint:
                message = (
                    f"replica {other} has the fingerprint {found.fingerprint} and replica 0 {first.fingerprint}: they "
                    "would give different bits; give all the same files and versions"
                )
                return self._fail(message, EngineFailed(message=message, user_error=True))
        # A request that one replica has no room for is refused, or chance would decide: nobody chooses a replica.
        room = min(facts.kv_tokens for facts in self._facts.values())
        joined = msgspec.structs.replace(first, replicas=len(self._replicas), kv_tokens=room)
        return [EngineReady(facts=joined)]

    def _fail(self, text: str, failure: EngineFailed) -> list[Message]:
        if self._failed:
            return []
        self._failed = True
        return [msgspec.structs.replace(failure, message=text)]

    def _joined(self, reply: Reply) -> list[Message]:
        """One reply when all have come: the counters' sums."""
        replies = self._replies.get(reply.call)
        if replies is None:
            return []
        replies.append(reply)
        if len(replies) < len(self._replicas):
            return []
        del self._replies[reply.call]
        return [joined_replies(replies)]


def joined_replies(replies: Sequence[Reply]) -> Reply:
    """Replies of all replicas to one call, added up field by field."""
    first = replies[0]
    if isinstance(first, ProfileReply):
        profiles = [reply for reply in replies if isinstance(reply, ProfileReply)]
        paths = [path for reply in profiles for path in reply.paths]
        error = next((reply.error for reply in profiles if reply.error), "")
        return ProfileReply(call=first.call, paths=paths, error=error)
    sums: dict[str, object] = {}
    for name in first.__struct_fields__:
        values = [getattr(reply, name) for reply in replies]
        if name == "call":
            sums[name] = first.call
        elif isinstance(values[0], list):
            sums[name] = [sum(column) for column in zip(*values, strict=True)]
        else:
            sums[name] = sum(values)
    return type(first)(**sums)  # type: ignore[arg-type]
