"""`python -m samebits.bench.kernels`: the exact CPU kernels against torch in float32, interleaved in one run.

A product streams through more weights than the caches hold, as a model's layers do. The rates of the machine
(a copy, a square `torch.mm`) stand beside the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from samebits.bench.facts import copy_rate, machine, multiply_rate, seconds_of
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.operators import HeadLayout
from samebits.tables import align

ROWS = (1, 4, 16, 64, 256, 2048)
# (in, out) of the bundled model and of a 0.5B Qwen; the last of each is a part of its vocabulary.
BUNDLED = ((384, 1024), (512, 384), (384, 2048), (1024, 384), (384, 8192))
HALF_BILLION = ((896, 1152), (896, 896), (896, 9728), (4864, 896), (896, 16384))
LAYOUTS = (HeadLayout(8, 4, 64), HeadLayout(14, 2, 64))
SPANS = ((2048, 2048), (256, 2048), (1, 512), (1, 2048), (1, 8192))
PAGE_TOKENS = 128
WEIGHT_BYTES = 64 << 20
SECONDS_A_CASE = 0.6
PAUSE_SECONDS = 0.002


@dataclass(frozen=True)
class Comparison:
    """Median seconds of one case, ours and torch's, and what bounds it."""

    case: str
    ours: float
    torch: float
    operations: float
    """floating-point operations"""
    bytes_read: float
    """of weights, or of keys and values, as we store them"""

    @property
    def ratio(self) -> float:
        """How many times faster than torch; below 1 is slower."""
        return self.torch / self.ours

    def row(self) -> list[str]:
        rates = [f"{self.operations / self.ours / 1e9:.1f}", f"{self.bytes_read / self.ours / 1e9:.1f}"]
        times = [f"{self.ours * 1e6:.0f}", f"{self.torch * 1e6:.0f}"]
        return [self.case, *times, f"{self.ratio:.2f}", *rates]


HEADER = ["case", "ours us", "torch us", "times faster", "GFLOP/s", "GB/s"]


def interleave(ours: Callable[[int], object], theirs: Callable[[int], object]) -> tuple[float, float]:
    """Median seconds of both, run in turn; each gets the number of the run, to pick its weights."""
    ours(0)
    theirs(0)
    times: tuple[list[float], list[float]] = ([], [])
    deadline = time.perf_counter() + SECONDS_A_CASE
    run = 0
    while run < 5 or (run < 200 and time.perf_counter() < deadline):
        run += 1
        for work, seconds in ((ours, times[0]), (theirs, times[1])):
            seconds.append(seconds_of(lambda work=work, run=run: work(run)))  # type: ignore[misc]
            # The other side's threads spin a while after their work.
            time.sleep(PAUSE_SECONDS)
    return median(times[0]), median(times[1])


def compare_product(
    operators: CpuOperators, rows: int, depth: int, columns: int, dtype: torch.dtype
) -> Comparison:
    """x [rows, depth] times weights [columns, depth]: `dtype` for us, float32 for torch."""
    count = max(1, WEIGHT_BYTES // (4 * depth * columns)) if rows <= 16 else 1
    theirs = [torch.randn(columns, depth) for _ in range(count)]
    ours = [operators.pack_linear(weight.to(dtype)) for weight in theirs]
    x = torch.randn(rows, depth)
    seconds = interleave(
        lambda run: operators.linear(x, ours[run % count]),
        lambda run: torch.mm(x, theirs[run % count].t()),
    )
    name = f"{rows} x {depth} -> {columns}, {str(dtype).removeprefix('torch.')}"
    size = float(depth * columns * dtype.itemsize)
    return Comparison(name, *seconds, operations=2.0 * rows * depth * columns, bytes_read=size)


def attention_inputs(
    operators: CpuOperators, heads: HeadLayout, rows: int, context: int
) -> tuple[Tensor, Any, RaggedBatch]:
    """Random queries, filled pages and a batch of one request whose last `rows` rows are asked for."""
    pages = -(-context // PAGE_TOKENS)
    kv = operators.allocate_kv(1, pages, PAGE_TOKENS, heads)[0]
    kv.keys.normal_()
    kv.values.normal_()
    positions = torch.arange(context - rows, context)
    batch = RaggedBatch(
        token_ids=torch.zeros(rows, dtype=torch.int64),
        positions=positions,
        slots=positions,
        query_start=torch.tensor([0, rows], dtype=torch.int32),
        page_table=torch.arange(pages, dtype=torch.int32)[None],
        page_tokens=PAGE_TOKENS,
        row_faults=torch.zeros(rows, dtype=torch.uint8),
    )
    return torch.randn(rows, heads.query_heads, heads.head_dim), kv, batch


def compare_attention(operators: CpuOperators, heads: HeadLayout, rows: int, context: int) -> Comparison:
    """Causal attention of the last rows of a context; torch gets keys and values repeated beforehand."""
    queries, kv, batch = attention_inputs(operators, heads, rows, context)
    scale = heads.head_dim**-0.5
    plain = queries.transpose(0, 1)[None].contiguous()
    keys, values = (torch.randn(1, heads.query_heads, context, heads.head_dim) for _ in range(2))
    whole = rows == context
    mask = None
    if 1 < rows < context:
        mask = torch.ones(rows, context, dtype=torch.bool).tril(context - rows)
    seconds = interleave(
        lambda run: operators.attention(queries, heads, scale, batch, kv),
        lambda run: scaled_dot_product_attention(plain, keys, values, attn_mask=mask, is_causal=whole),
    )
    seen = rows * (context - rows) + rows * (rows + 1) / 2
    name = f"attention {rows} of {context}, heads {heads.query_heads}/{heads.kv_heads}, head_dim {heads.head_dim}"
    size = 8.0 * context * heads.kv_width
    return Comparison(name, *seconds, operations=4.0 * seen * heads.query_width, bytes_read=size)


def run(threads: int, row_counts: Sequence[int], dtypes: Sequence[torch.dtype]) -> dict[str, Any]:
    """Every comparison on `threads` threads, with the machine's own rates."""
    torch.set_num_threads(threads)
    operators = CpuOperators(threads=threads)
    operators.compile()
    products = [
        compare_product(operators, rows, depth, columns, dtype)
        for depth, columns in (*BUNDLED, *HALF_BILLION)
        for rows in row_counts
        for dtype in dtypes
    ]
    attentions = [
        compare_attention(operators, heads, rows, context) for heads in LAYOUTS for rows, context in SPANS
    ]
    operators.close()
    return {
        "machine": machine(),
        "threads": threads,
        "copy_bytes_per_second": copy_rate(),
        "multiply_operations_per_second": multiply_rate(),
        "comparisons": [asdict(one) | {"ratio": one.ratio} for one in (*products, *attentions)],
        "rows": [one.row() for one in (*products, *attentions)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m samebits.bench.kernels", description="Exact CPU kernels against torch in float32."
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both sides")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="row counts of the products")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="storage of our weights")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    rows = [int(part) for part in options.rows.split(",")]
    dtypes = [getattr(torch, part) for part in options.dtypes.split(",")]
    result = run(options.threads, rows, dtypes)
    if options.json:
        print(json.dumps({name: value for name, value in result.items() if name != "rows"}, indent=2))
        return
    print("\n".join(align([HEADER, *result["rows"]])))
    print(
        f"{result['threads']} threads; the machine copies {result['copy_bytes_per_second'] / 1e9:.1f} GB/s "
        f"and torch.mm multiplies at {result['multiply_operations_per_second'] / 1e9:.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main()
