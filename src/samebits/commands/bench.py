"""`samebits bench`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from samebits.commands import (
    bench_accuracy,
    bench_admission,
    bench_allreduce,
    bench_attention,
    bench_device,
    bench_gemm,
    bench_http,
    bench_logprobs,
    bench_parallel,
    bench_row_parallel,
    bench_serve,
    bench_start,
)
from samebits.commands.flags import add_settings, command, positive, settings_of
from samebits.config import ModelConfig

BIG_SHAPE = "qwen3-0.5b-shaped"
BIG_REPEATS, BIG_DECODE_TOKENS = 3, 16
"""At most this much of the large shape: transformers takes minutes for it on a small machine."""
KERNELS = """\
  samebits bench kernels
  samebits bench kernels --model qwen3-0.5b-shaped --load-format dummy --threads 1
"""
OFFLINE = """\
  samebits bench offline                                  bundled model, and a shape of 0.5B with dummy weights
  samebits bench offline --model path/to/checkpoint --repeats 9
  samebits bench offline --model tiny --load-format dummy
"""
SCHEDULER = """\
  samebits bench scheduler
  samebits bench scheduler --peer path/to/mini-sglang
"""


def add(commands: Any) -> None:
    parser = command(
        commands,
        "bench",
        "measure speed",
        KERNELS
        + OFFLINE
        + SCHEDULER
        + bench_admission.EXAMPLES
        + bench_http.EXAMPLES
        + bench_serve.EXAMPLES
        + bench_accuracy.EXAMPLES
        + bench_logprobs.EXAMPLES
        + bench_device.EXAMPLES
        + bench_start.EXAMPLES
        + bench_gemm.EXAMPLES
        + bench_row_parallel.EXAMPLES
        + bench_attention.EXAMPLES
        + bench_allreduce.EXAMPLES
        + bench_parallel.EXAMPLES,
        run,
        "bench WHAT",
    )
    kinds = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    kernels = command(
        kinds, "kernels", "matrix products and attention against torch", KERNELS, run_kernels, "bench kernels"
    )
    add_common(kernels, "results/kernels.json")
    offline = command(
        kinds, "offline", "throughput against transformers in float32", OFFLINE, run_offline, "bench offline"
    )
    offline.add_argument(
        "--decode-tokens", type=positive, default=32, metavar="N", help="answer length (default: 32)"
    )
    add_common(offline, "results/offline.json")
    add_scheduler(kinds)
    bench_admission.add_admission(kinds)
    bench_http.add_http(kinds)
    bench_serve.add_serve(kinds)
    bench_accuracy.add_accuracy(kinds)
    bench_logprobs.add_logprobs(kinds)
    bench_device.add(kinds)
    bench_start.add_start(kinds)
    bench_gemm.add(kinds)
    bench_row_parallel.add(kinds)
    bench_attention.add(kinds)
    bench_allreduce.add_allreduce(kinds)
    bench_parallel.add(kinds)


def add_common(parser: argparse.ArgumentParser, output: str) -> None:
    """Flags that every benchmark has."""
    parser.add_argument(
        "--repeats", type=positive, default=5, metavar="N", help="interleaved rounds (default: 5)"
    )
    parser.add_argument(
        "--threads", type=positive, default=os.cpu_count(), metavar="N", help="of both (default: all)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(output), metavar="FILE", help="(default: %(default)s)"
    )
    add_settings(parser, ModelConfig)


def add_scheduler(kinds: Any) -> None:
    parser = command(
        kinds,
        "scheduler",
        "host time of a step and of the prefix cache, with a null model",
        SCHEDULER,
        run_scheduler,
        "bench scheduler",
    )
    parser.add_argument("--steps", type=positive, default=100, metavar="N", help="steps timed (default: 100)")
    parser.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="interleaved rounds (default: 3)"
    )
    parser.add_argument(
        "--peer",
        type=Path,
        metavar="FOLDER",
        help="a checkout of mini-sglang, whose radix cache is measured too",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/scheduler.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    raise AssertionError("argparse demands one of the benchmarks")


def run_kernels(options: argparse.Namespace) -> int:
    from samebits.bench import attention, kernels
    from samebits.tables import align

    config = settings_of(options, ModelConfig)
    result = kernels.run(config, options.repeats, options.threads, options.output, progress)
    print("\n".join(align(kernels.table_rows(result["products"]))))
    print("\n".join(align(attention.table_rows(result["attention"]))))
    conclude(options)
    return 0


def run_scheduler(options: argparse.Namespace) -> int:
    from samebits.bench.scheduler import run as run_bench
    from samebits.bench.scheduler import table_rows, tree_rows
    from samebits.tables import align

    result = run_bench(
        options.steps,
        options.repeats,
        options.peer,
        options.output,
        progress,
    )
    print("\n".join([*align(table_rows(result)), "", *align(tree_rows(result))]))
    print(f"\nmedians of {options.repeats} interleaved rounds; figures in {options.output}")
    return 0


def run_offline(options: argparse.Namespace) -> int:
    config = settings_of(options, ModelConfig)
    from samebits.bench.offline import Options, table_rows
    from samebits.bench.offline import run as run_bench
    from samebits.tables import align

    work = [(config, Options(options.repeats, options.decode_tokens, options.threads))]
    if options.model is None:
        big = ModelConfig(model=BIG_SHAPE, load_format="dummy", numerics=config.numerics)
        repeats, tokens = min(options.repeats, BIG_REPEATS), min(options.decode_tokens, BIG_DECODE_TOKENS)
        work.append((big, Options(repeats, tokens, options.threads)))
    result = run_bench(work, options.output, progress)
    print("\n".join(align(table_rows(result["models"]))))
    conclude(options)
    return 0


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def conclude(options: argparse.Namespace) -> None:
    print(f"\nmedians of interleaved rounds, {options.threads} threads; every figure is in {options.output}")
