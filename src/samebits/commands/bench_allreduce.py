"""`samebits bench allreduce`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from samebits.commands.flags import command, positive
from samebits.errors import ConfigError

EXAMPLES = """\
  samebits bench allreduce --ranks 2 --output results/allreduce-h200.json
"""


def add_allreduce(kinds: Any) -> None:
    parser = command(
        kinds,
        "allreduce",
        "sums over the GPUs of this host: bits, and time against NCCL and PyTorch's own",
        EXAMPLES,
        run,
        "bench allreduce",
    )
    parser.add_argument(
        "--ranks", type=positive, default=0, metavar="N", help="GPUs (default: all of this machine)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")


def run(options: argparse.Namespace) -> int:
    import torch

    from samebits.bench import all_reduce

    there = torch.cuda.device_count()
    ranks = options.ranks or there
    if not 2 <= ranks <= there:
        raise ConfigError(f"--ranks {ranks}: a sum over GPUs needs at least 2, and this machine has {there}")
    found = all_reduce.run(ranks)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(all_reduce.lines(found)))
    return 0
