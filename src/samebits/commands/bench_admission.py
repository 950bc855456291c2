"""`samebits bench admission`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from samebits.commands.flags import command

EXAMPLES = """\
  samebits bench admission                               the scheduler alone, over a model of time
"""


def add_admission(kinds: Any) -> None:
    parser = command(
        kinds,
        "admission",
        "what foretelling memory before admission is worth, without a model",
        EXAMPLES,
        run_admission,
        "bench admission",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/admission.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )


def run_admission(options: argparse.Namespace) -> int:
    from samebits.bench.admission import run, table_rows
    from samebits.tables import align

    result = run(options.output, lambda line: print(line, file=sys.stderr))
    print("\n".join(align(table_rows(result))))
    print(f"\nevery figure is in {options.output}")
    return 0
