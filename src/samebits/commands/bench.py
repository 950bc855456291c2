"""`samebits bench`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from samebits.commands.flags import add_settings, command, settings_of
from samebits.config import ModelConfig

BIG_SHAPE = "qwen3-0.5b-shaped"
EXAMPLES = """\
  samebits bench offline                                  against transformers: bundled model and a 0.5B shape
  samebits bench offline --model path/to/checkpoint --repeats 9
  samebits bench offline --model tiny --load-format dummy
"""


def add(commands: Any) -> None:
    parser = command(
        commands, "bench", "measure speed, as ratios out of one run", EXAMPLES, run, "bench WHAT"
    )
    kinds = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    offline = command(
        kinds, "offline", "throughput against transformers in float32", EXAMPLES, run_offline, "bench offline"
    )
    offline.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="interleaved rounds (default: 5)"
    )
    offline.add_argument(
        "--decode-tokens", type=int, default=32, metavar="N", help="answer length (default: 32)"
    )
    offline.add_argument(
        "--threads", type=int, default=os.cpu_count(), metavar="N", help="of both (default: all)"
    )
    offline.add_argument(
        "--output",
        type=Path,
        default=Path("results/offline.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    add_settings(offline, ModelConfig)


def run(options: argparse.Namespace) -> int:
    raise AssertionError("argparse demands one of the benchmarks")


def run_offline(options: argparse.Namespace) -> int:
    config = settings_of(options, ModelConfig)
    configs = [config]
    if options.model is None:
        configs.append(ModelConfig(model=BIG_SHAPE, load_format="dummy", numerics=config.numerics))
    from samebits.bench.offline import Options, table_rows
    from samebits.bench.offline import run as run_bench
    from samebits.tables import align

    result = run_bench(
        configs,
        Options(options.repeats, options.decode_tokens, options.threads),
        options.output,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print("\n".join(align(table_rows(result["models"]))))
    print(
        f"\nmedians of {options.repeats} interleaved rounds, {options.threads} threads; figures in {options.output}"
    )
    return 0
