"""The gate and up product of many rows with its activation in the last step, by clusters of two programs on Hopper.

At thousands of rows a card is at the most power that it may draw, so what saves energy saves time. The pair of product
and activation writes gate and up to memory and reads them again; here the activation is computed from the product's
registers, and its bits are those of the pair: see `gated`. It is that of `rough_silu`, with the clause's own sequence
where an estimate might round otherwise. What a program of a cluster copies of the weight goes to both, so a weight is
read from the second-level cache half as often. The kernel is `gated_cluster.cu`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from samebits.errors import NumericsError
from samebits.numerics.gpu import nvrtc
from samebits.numerics.gpu.prover import Candidate, Tensors
from samebits.numerics.gpu.rough_silu import DOUBT, ESTIMATE, EXACT, REGISTERS, estimates_are_near, of_both

NAME, CANDIDATE = "gated_cluster", "fused cluster 256x128x64"
CLUSTER = 2
ROWS, COLUMNS, DEPTH, STAGES = 128, 128, 64, 4
"""Of a program's tile of the result, of a block of K, and how many of these lie in shared memory: as in the kernel."""
SUMS = 128
"""Registers of a thread that hold a product."""
THREADS = 384
STAGED_ROW, BARRIERS = COLUMNS + 8, 2 * STAGES + 1
SHARED_BYTES = STAGES * (ROWS + 2 * COLUMNS) * DEPTH * 2 + ROWS * STAGED_ROW * 2 + 8 * BARRIERS
LEAST_ROWS = 2048
"""With fewer the card is not short of power."""
GROUP = 8
"""Tiles of 256 rows that are computed side by side."""


def operands(first_gate: int) -> tuple[dict[str, str], dict[str, str]]:
    """Names of the registers of two elements: the results, two gates from `first_gate` on, and two ups."""
    even, odd = (
        {"out": f"%{which}", "gate": f"%{first_gate + which}", "up": f"%{first_gate + 2 + which}"}
        for which in (0, 1)
    )
    return even, odd


@functools.cache
def kernel_text() -> str:
    """The kernel's whole text: what it wants to be defined, then the file."""
    estimate = f"{of_both(ESTIMATE, operands(3))} {of_both(DOUBT, operands(3))} @doubt or.b32 %2, %2, %7;"
    defined = {
        "SUMS": '"' + ", ".join(f"%{number}" for number in range(SUMS)) + '"',
        "SUM_OPERANDS": ", ".join(f'"+f"(sums[{number}])' for number in range(SUMS)),
        "ESTIMATED_PAIR": f'"{{ {REGISTERS} setp.ne.s32 doubt, 0, 0; {estimate} }}"',
        "EXACT_PAIR": f'"{{ {REGISTERS} {of_both(EXACT, operands(2))} }}"',
    }
    lines = [f"#define {name} {' '.join(text.split())}\n" for name, text in defined.items()]
    return "".join(lines) + Path(__file__).with_suffix(".cu").read_text()


def fits(width: int, depth: int, act: torch.dtype, bucket: int, target: str) -> bool:
    """Whether the kernel computes [bucket, width] of [bucket, depth]: whole tiles only."""
    return (
        target == "sm_90"
        and act is torch.bfloat16
        and bucket >= LEAST_ROWS
        and bucket % (CLUSTER * ROWS) == 0
        and width % COLUMNS == 0
        and depth % DEPTH == 0
        and depth >= STAGES * DEPTH
    )


def candidate() -> Candidate:
    """The kernel on (x [rows, depth], weight [2 width, depth]) -> (out [rows, width],). Raises `NumericsError` where
    this device's estimates are too rough."""
    device = torch.cuda.current_device()
    if not estimates_are_near(torch.device("cuda", device)):
        raise NumericsError("this device's estimates are too rough for the gated activation")
    kernel = nvrtc.load(kernel_text(), NAME, THREADS, SHARED_BYTES, device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    programs = processors // CLUSTER * CLUSTER

    def run(inputs: Tensors, outputs: Tensors) -> None:
        x, weight, out = inputs[0], inputs[1], outputs[0]
        (rows, width), depth = out.shape, x.shape[1]
        maps = (nvrtc.TensorMap.of(x, ROWS, DEPTH), nvrtc.TensorMap.of(weight, COLUMNS, DEPTH))
        tiles = rows // (CLUSTER * ROWS) * (width // COLUMNS)
        kernel.launch(min(programs, CLUSTER * tiles), maps, out, (rows, width, depth, GROUP))

    return Candidate(CANDIDATE, kernel.digest, run)
