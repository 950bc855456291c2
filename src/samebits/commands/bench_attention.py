"""`samebits bench attention`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from samebits.commands.flags import command

EXAMPLES = """\
  samebits bench attention
  samebits bench attention --output results/attention-h200.json --plot results/attention-h200.png
"""


def add(kinds: Any) -> None:
    parser = command(
        kinds,
        "attention",
        "decode and prefill attention on a GPU against memory and torch",
        EXAMPLES,
        run,
        "bench attention",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/attention.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the figures into an image (needs matplotlib)"
    )


def run(options: argparse.Namespace) -> int:
    from samebits.bench import attention_gpu
    from samebits.bench.plotting import check_plotting
    from samebits.tables import align

    if options.plot is not None:
        check_plotting()
    result = attention_gpu.run(options.output, say=lambda line: print(line, file=sys.stderr, flush=True))
    print("\n".join(align(attention_gpu.decode_rows(result))))
    print("\n".join(["", *align(attention_gpu.prefill_rows(result))]))
    print(f"\nprefill in TFLOP/s; every figure is in {options.output}")
    if options.plot is not None:
        attention_gpu.plot(result, options.plot)
    return 0
