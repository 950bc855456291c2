"""`samebits bench http`: what the server's process costs a request and a token.

A real server over a null engine, both in processes of their own, and this one as the client. Beside the rates stand
the processor seconds of each process: on a machine with other work, or fewer cores than three, they say more.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from samebits.bench.facts import machine, write_result
from samebits.bench.http_client import load, request_bytes

WARM_SECONDS = 1.0
SHORT_TOKENS, STREAM_TOKENS = 8, 256
AIMS = {"requests a second": 3000, "streamed tokens a second": 50_000}
LIBRARIES = ("uvicorn", "starlette", "msgspec", "pyzmq", "uvloop", "httptools")


@dataclass(frozen=True)
class Server:
    """A running server under measurement."""

    port: int
    process: int
    engine_process: int


Serve = Callable[[str], AbstractContextManager[Server]]
"""Starts a server over the null engine of that name (`null_service.BUILDERS`)."""


@dataclass(frozen=True)
class Case:
    """One kind of load."""

    name: str
    engine: str
    path: str
    body: dict[str, Any]
    connections: int
    tokens: int
    """output tokens of a response"""

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))


def cases() -> list[Case]:
    """Short answers on three routes, and streams at the engine's pace and at the server's own."""
    text = "def add(a, b):"
    chat = [{"role": "user", "content": text}]
    native = {"text": text, "sampling_params": {"max_new_tokens": SHORT_TOKENS}}
    stream = {"prompt": text, "max_tokens": STREAM_TOKENS, "stream": True}
    return [
        Case(
            "completions",
            "unpaced",
            "/v1/completions",
            {"prompt": text, "max_tokens": SHORT_TOKENS},
            64,
            SHORT_TOKENS,
        ),
        Case(
            "chats",
            "unpaced",
            "/v1/chat/completions",
            {"messages": chat, "max_tokens": SHORT_TOKENS},
            64,
            SHORT_TOKENS,
        ),
        Case("/generate", "unpaced", "/generate", native, 64, SHORT_TOKENS),
        Case("256 streams, 200 steps/s", "paced", "/v1/completions", stream, 256, STREAM_TOKENS),
        Case("64 streams, unpaced", "unpaced", "/v1/completions", stream, 64, STREAM_TOKENS),
    ]


def run(
    serve: Serve, seconds: float, repeats: int, output: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every case `repeats` times, interleaved, and write `output`."""
    found: dict[str, list[dict[str, float]]] = {}
    for repeat in range(repeats):
        for case in cases():
            with serve(case.engine) as server:
                found.setdefault(case.name, []).append(measure(server, case, seconds))
        say(f"round {repeat + 1} of {repeats}")
    result = {
        "machine": machine() | {"libraries": {name: _version(name) for name in LIBRARIES}},
        "load average at the end": [round(value, 2) for value in os.getloadavg()],
        "cases": [
            {
                "case": case.name,
                "connections": case.connections,
                "output tokens": case.tokens,
                **{
                    key: round(median(one[key] for one in found[case.name]), 3) for key in found[case.name][0]
                },
                "rounds": [{key: round(value, 3) for key, value in one.items()} for one in found[case.name]],
            }
            for case in cases()
        ],
        "aims": AIMS,
    }
    write_result(output, result)
    return result


def measure(server: Server, case: Case, seconds: float) -> dict[str, float]:
    """Rates and processor time of one case."""
    request = request_bytes(case.path, case.body)
    processes = {"server": server.process, "engine": server.engine_process, "client": os.getpid()}
    before = {name: cpu_seconds(process) for name, process in processes.items()}
    started = time.perf_counter()
    tally = asyncio.run(load(server.port, request, case.connections, WARM_SECONDS, seconds))
    wall = time.perf_counter() - started
    spent = {name: cpu_seconds(process) - before[name] for name, process in processes.items()}
    tokens = tally.responses * case.tokens
    busy = spent["server"] / wall
    return {
        "requests a second": tally.responses / seconds,
        "tokens a second": tokens / seconds,
        "tokens a frame": tokens / max(1, tally.frames - tally.responses) if case.is_stream else 0.0,
        "server cores": busy,
        "engine cores": spent["engine"] / wall,
        "client cores": spent["client"] / wall,
        "server microseconds a request": 1e6 * busy * seconds / max(1, tally.responses),
        "server microseconds a token": 1e6 * busy * seconds / max(1, tokens),
    }


def cpu_seconds(process: int) -> float:
    """Processor time that a process has used so far, all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table_rows(found: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The result for people."""
    rows: list[tuple[str, ...]] = [
        ("case", "requests/s", "tokens/s", "server cores", "server µs a request", "µs a token")
    ]
    for row in found:
        rows.append(
            (
                row["case"],
                f"{row['requests a second']:.0f}",
                f"{row['tokens a second']:.0f}",
                f"{row['server cores']:.2f}",
                f"{row['server microseconds a request']:.0f}",
                f"{row['server microseconds a token']:.1f}",
            )
        )
    return rows


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
