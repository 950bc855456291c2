"""`samebits bench http`, and the server that it measures: `python -m samebits.commands.bench_http PORT ENGINE`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samebits.commands.flags import command, positive

EXAMPLES = """\
  samebits bench http
  samebits bench http --seconds 5 --repeats 3
"""
STOP_SECONDS = 20.0


def add_http(kinds: Any) -> None:
    parser = command(
        kinds,
        "http",
        "requests and tokens a second of the server over a null engine",
        EXAMPLES,
        run,
        "bench http",
    )
    parser.add_argument(
        "--seconds", type=some_seconds, default=5.0, metavar="X", help="counted in each case (default: 5)"
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="interleaved rounds (default: 3)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/http.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )


def some_seconds(text: str) -> float:
    """A time above zero, for argparse."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def run(options: argparse.Namespace) -> int:
    from samebits.bench.http import run as run_bench
    from samebits.bench.http import table_rows
    from samebits.tables import align

    result = run_bench(serve, options.seconds, options.repeats, options.output, _say)
    print("\n".join(align(table_rows(result["cases"]))))
    print(f"\nmedians of {options.repeats} interleaved rounds; every figure is in {options.output}")
    return 0


@contextmanager
def serve(engine: str) -> Iterator[Any]:
    """A server over the null engine of that name, in a process of its own."""
    from samebits.bench.http import Server
    from samebits.commands.server_process import server_process

    with server_process(lambda port: ["-m", __name__, str(port), engine], STOP_SECONDS) as server:
        yield Server(server.port, server.process.pid, _engine_process(server.process.pid))


def _engine_process(server: int) -> int:
    """The child of the server that holds the engine."""
    for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise RuntimeError("the server has no engine")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """The server under measurement. Draining would only wait for requests that are repeated for ever."""
    from samebits.bench.null_service import BUILDERS
    from samebits.config import EngineConfig, ModelConfig, ServerConfig
    from samebits.server.lifecycle import serve as serve_http

    port, engine = int(arguments[0]), arguments[1]
    server = ServerConfig(port=port, log_level="warning", drain_seconds=0.0)
    return serve_http(ModelConfig(), EngineConfig(), server, BUILDERS[engine])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
