"""`samebits bench logprobs`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from samebits.commands.flags import add_settings, command, positive, quieten, settings_of
from samebits.config import EngineConfig, ModelConfig

EXAMPLES = """\
  samebits bench logprobs
  samebits bench logprobs --model path/to/checkpoint --lengths 100 2000 --output results/logprobs.json
"""


def add_logprobs(kinds: Any) -> None:
    parser = command(
        kinds,
        "logprobs",
        "error of logprobs against transformers in float64",
        EXAMPLES,
        run_logprobs,
        "bench logprobs",
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=positive,
        metavar="N",
        help="tokens of each prompt (default: 3 130 700 1900)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/logprobs.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    add_settings(parser, ModelConfig, EngineConfig)


def run_logprobs(options: argparse.Namespace) -> int:
    """Score, compare, tell."""
    from samebits.bench import logprobs
    from samebits.tables import align

    quieten()
    model, engine = settings_of(options, ModelConfig), settings_of(options, EngineConfig)
    lengths = options.lengths or logprobs.LENGTHS
    result = logprobs.run(model, engine, lengths, options.output, lambda line: print(line, file=sys.stderr))
    print("\n".join(align(logprobs.table_rows(result))))
    print(f"\nabsolute errors against transformers in float64; every figure is in {options.output}")
    return 0
