"""`samebits bench start`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from samebits.commands.bench_device import settings_of_shape
from samebits.commands.flags import add_settings, command, positive
from samebits.config import EngineConfig, ModelConfig

EXAMPLES = """\
  samebits bench start                                   Qwen3-8B shape, dummy weights
  samebits bench start --model bundled --repeats 1
"""
STOP_SECONDS = 60.0


def add_start(kinds: Any) -> None:
    parser = command(
        kinds,
        "start",
        "seconds until a server is ready, with empty caches and after",
        EXAMPLES,
        run_start,
        "bench start",
    )
    parser.add_argument(
        "--repeats", type=positive, default=2, metavar="N", help="starts with filled caches (default: 2)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/start.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    add_settings(parser, ModelConfig, EngineConfig)


def run_start(options: argparse.Namespace) -> int:
    from samebits.bench.start import Started, run, table_rows
    from samebits.tables import align

    model, engine = settings_of_shape(options)

    def start(environment: dict[str, str]) -> Started:
        return Started(*_start(model, engine, environment))

    result = run(start, model, options.repeats, options.output, lambda line: print(line, file=sys.stderr))
    print("\n".join(align(table_rows(result))))
    print(f"\nevery figure is in {options.output}")
    return 0


def _start(model: ModelConfig, engine: EngineConfig, environment: dict[str, str]) -> tuple[float, float, str]:
    """When a server was started, seconds until it was ready, its log. Raises `EngineError` where it does not start."""
    from samebits.bench.start import LOGGING
    from samebits.commands.server_process import serve_arguments, server_process

    def arguments(port: int) -> list[str]:
        return [*serve_arguments(model, engine, port), *LOGGING]

    begun = time.time()
    with server_process(arguments, STOP_SECONDS, environment) as server:
        seconds = time.time() - begun
        server.process.terminate()
        server.process.wait(STOP_SECONDS)
        return begun, seconds, server.output()
