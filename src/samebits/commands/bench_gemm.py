"""`samebits bench gemm`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from samebits.commands.flags import command, positive

EXAMPLES = """\
  samebits bench gemm
  samebits bench gemm --output results/gemm-h200.json --plot results/gemm-h200.png
  samebits bench gemm --gpus 4
"""


def add(kinds: Any) -> None:
    parser = command(
        kinds,
        "gemm",
        "matrix products of 8B and 32B models on a GPU against torch.mm",
        EXAMPLES,
        run,
        "bench gemm",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/gemm.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the ratios into an image (needs matplotlib)"
    )
    parser.add_argument(
        "--gpus",
        type=positive,
        default=1,
        metavar="N",
        help="GPUs of this machine that share the matrices, each with a process (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    from samebits.bench import gemm
    from samebits.bench.plotting import check_plotting
    from samebits.tables import align

    if options.plot is not None:
        check_plotting()
    result = gemm.run(
        options.output, gpus=options.gpus, say=lambda line: print(line, file=sys.stderr, flush=True)
    )
    print("\n".join(align(gemm.table_rows(result))))
    found = result["summary"]
    mean, least = found["geometric_mean"], found["least"]
    print(f"\ngeometric mean {mean:.3f}x over {found['products']} products, least {least:.3f}x")
    print(f"behind torch.mm: {len(found['under_1'])}; every figure is in {options.output}")
    if options.plot is not None:
        gemm.plot(result, options.plot)
    return 0
