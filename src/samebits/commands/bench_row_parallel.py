"""`samebits bench row-parallel`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from samebits.commands.flags import command

EXAMPLES = """\
  samebits bench row-parallel --output results/row-parallel-h200.json
"""


def add(kinds: Any) -> None:
    parser = command(
        kinds,
        "row-parallel",
        "the tree of tp-invariant against a chain, by degree, on one GPU",
        EXAMPLES,
        run,
        "bench row-parallel",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/row-parallel.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    from samebits.bench import row_parallel
    from samebits.tables import align

    result = row_parallel.run(options.output, say=lambda line: print(line, file=sys.stderr, flush=True))
    print("\n".join(align(row_parallel.table_rows(result))))
    for ranks, bands in result["summary"].items():
        print(f"{ranks}: " + ", ".join(f"{rows} rows {cost:.3f}" for rows, cost in bands.items()))
    print(f"tree over chain, geometric means; every figure is in {options.output}")
    return 0
