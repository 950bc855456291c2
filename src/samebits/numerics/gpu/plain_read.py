"""Reading bytes and doing nothing with them: how fast a launch can be that reads as much as attention does.

The rate at which gibibytes are read leaves out what every launch pays: its start, and the time until requests fill the
memory's queue and after the last has left it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from samebits.numerics.gpu.configuration import Launch, start
from samebits.numerics.gpu.dependent import wait_ahead

SHAPES = ((132, 16384, 16, 4), (264, 8192, 8, 4), (528, 4096, 4, 4))
"""(programs, words of a block, warps, stages): the fastest of these counts"""


@triton.jit
def read_words(source, output, blocks, BLOCK: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr):
    """Grid (programs,). Reads `blocks` times BLOCK int32, and writes one int32 a program, so that they are read."""
    wait_ahead(DEPENDENT)
    found = tl.zeros((BLOCK,), tl.int32)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):
        found = found | tl.load(source + block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK))
    tl.store(output + tl.program_id(0), tl.max(found, 0))


def readers(words: Tensor) -> dict[str, Callable[[], object]]:
    """Launches that read int32 [count] whole, count a multiple of 16,384, by name."""
    output = torch.zeros(max(shape[0] for shape in SHAPES), dtype=torch.int32, device=words.device)

    def reader(programs: int, block: int, warps: int, stages: int) -> Callable[[], object]:
        def read() -> None:
            start(
                read_words, (min(programs, words.numel() // block),), words, output, words.numel() // block,
                BLOCK=block, STAGES=stages, launch=Launch(warps, stages),
            )  # fmt: skip

        return read

    return {f"{shape[0]} programs": reader(*shape) for shape in SHAPES}
