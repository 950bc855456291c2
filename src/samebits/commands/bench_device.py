"""`samebits bench decode`, `prefill` and `serving`: what needs a GPU."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from samebits.bench.loads import NAMES, REQUESTS
from samebits.commands.flags import add_settings, command, positive, settings_of
from samebits.config import EngineConfig, ModelConfig

SHAPE = "qwen3-8b-shaped"
DECODE = """\
  samebits bench decode                                  exact against unpinned, Qwen3-8B shape, dummy weights
  samebits bench decode --profiles exact --batches 1 64
"""
PREFILL = """\
  samebits bench prefill                                 exact against unpinned, Qwen3-8B shape, dummy weights
  samebits bench prefill --profiles exact
"""
SERVING = """\
  samebits bench serving                                 256 requests of 1k/1k, of 4k/4k and of mixed lengths
  samebits bench serving --loads 1k/1k --profiles exact unpinned
  samebits bench serving --loads 4k/4k --seconds 300     stopped after five minutes
"""
EXAMPLES = DECODE + PREFILL + SERVING


def add(kinds: Any) -> None:
    decode = _add(kinds, "decode", "time of a decode step on a GPU", DECODE, run_decode)
    decode.add_argument("--profiles", nargs="+", default=["exact", "unpinned"], metavar="PROFILE")
    decode.add_argument("--batches", nargs="+", type=positive, default=None, metavar="N")
    decode.add_argument(
        "--steps", type=positive, default=24, metavar="N", help="steps of a round (default: 24)"
    )
    decode.add_argument("--plot", type=Path, default=None, metavar="FILE", help="draw the steps, too")
    prefill = _add(
        kinds, "prefill", "prompt tokens a second on a GPU, beside the library alone", PREFILL, run_prefill
    )
    prefill.add_argument("--profiles", nargs="+", default=["exact", "unpinned"], metavar="PROFILE")
    prefill.add_argument("--plot", type=Path, default=None, metavar="FILE", help="draw the rates, too")
    serving = _add(
        kinds, "serving", "whole batches of requests through the engine on a GPU", SERVING, run_serving
    )
    serving.add_argument(
        "--loads", nargs="+", default=list(NAMES), choices=NAMES, metavar="LOAD", help=f"{', '.join(NAMES)}"
    )
    serving.add_argument(
        "--requests", type=positive, default=REQUESTS, metavar="N", help="of each load (default: %(default)s)"
    )
    serving.add_argument("--profiles", nargs="+", default=["exact"], metavar="PROFILE")
    serving.add_argument(
        "--seconds",
        type=positive,
        default=None,
        metavar="N",
        help="stop a load after so long; the result says how many requests had ended (default: never)",
    )
    serving.add_argument("--plot", type=Path, default=None, metavar="FILE", help="draw the latencies, too")


def _add(kinds: Any, name: str, help_text: str, examples: str, run: Any) -> argparse.ArgumentParser:
    parser = command(kinds, name, help_text, examples, run, f"bench {name}")
    if run is not run_serving:
        parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(f"results/{name}.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    add_settings(parser, ModelConfig, EngineConfig)
    return parser


def run_decode(options: argparse.Namespace) -> int:
    from samebits.bench import decode
    from samebits.tables import align

    model, engine = settings_of_shape(options)
    batches = options.batches or decode.BATCHES
    result = decode.run(
        model, engine, options.profiles, batches, options.repeats, options.steps, options.output, _progress
    )
    print("\n".join(align(decode.table_rows(result))))
    if options.plot:
        decode.plot(result, options.plot)
    print(f"\npeer: {decode.PEER['name']}; every figure is in {options.output}")
    return 0


def run_prefill(options: argparse.Namespace) -> int:
    from samebits.bench import prefill
    from samebits.bench.plotting import check_plotting
    from samebits.tables import align

    if options.plot:
        check_plotting()
    model, engine = settings_of_shape(options)
    result = prefill.run(model, engine, options.profiles, options.repeats, options.output, _progress)
    print("\n".join(align(prefill.table_rows(result))))
    if options.plot:
        prefill.plot(result, options.plot)
    print(f"\npeer: {prefill.PEER['name']}; every figure is in {options.output}")
    return 0


def run_serving(options: argparse.Namespace) -> int:
    from samebits.bench import device_serving
    from samebits.bench.loads import loads
    from samebits.bench.plotting import check_plotting
    from samebits.tables import align

    if options.plot:
        check_plotting()
    model, engine = settings_of_shape(options)
    wanted = [load for load in loads(options.requests) if load.name in options.loads]
    most = options.seconds or math.inf
    result = device_serving.run(model, engine, options.profiles, wanted, options.output, _progress, most)
    print("\n".join(align(device_serving.table_rows(result))))
    if options.plot:
        device_serving.plot(result, options.plot)
    print(f"\nevery figure is in {options.output}")
    return 0


def settings_of_shape(options: argparse.Namespace) -> tuple[ModelConfig, EngineConfig]:
    """The settings; without a model, the 8B shape with dummy weights."""
    if options.model is None:
        options.model, options.load_format = SHAPE, "dummy"
    return settings_of(options, ModelConfig), settings_of(options, EngineConfig)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
